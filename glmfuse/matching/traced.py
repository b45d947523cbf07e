"""A pattern function traced once, as terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize import Canonical, Term, canonicalize, terms_in
from glmfuse.capture import trace
from glmfuse.matching.pattern import Pattern, patterns_as_ops


@dataclass(frozen=True, slots=True)
class Traced:
    """One trace of a pattern function: its graph, its terms, and which of these are arguments."""

    graph_module: fx.GraphModule
    canonical: Canonical
    inputs: Mapping[str, Term]
    outputs: tuple[Term, ...]

    def live(self) -> tuple[Term, ...]:
        """The terms between the arguments and the outputs, producers first."""
        return live_terms(self.outputs)


def trace_pattern(
    pattern: Pattern,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
    as_ops: bool = True,
    function: Callable[..., Any] | None = None,
) -> Traced:
    """Trace the pattern's function, or another of its arguments, on these fake tensors.

    as_ops keeps the patterns that it calls as ops.
    """

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with patterns_as_ops(as_ops):
            result = (function or pattern.function)(**absent, **dict(zip(tensors, values, strict=True)), **scalars)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)

    absent = {p.name: None for p in pattern.parameters if p.is_tensor and p.name not in tensors}
    graph_module = trace(call, tuple(tensors.values()))
    canonical = canonicalize(graph_module.graph)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    inputs = {name: canonical.term_of[node] for name, node in zip(tensors, placeholders, strict=True)}
    return Traced(graph_module, canonical, inputs, canonical.outputs[0] if _nested(canonical) else canonical.outputs)


def _nested(canonical: Canonical) -> bool:
    return len(canonical.outputs) == 1 and isinstance(canonical.outputs[0], tuple)


def live_terms(outputs: tuple[Any, ...]) -> tuple[Term, ...]:
    """The terms that the outputs depend on, producers first."""
    done: dict[Term, None] = {}
    stack = [(output, False) for output in reversed(tuple(terms_in(tuple(outputs))))]
    while stack:
        term, is_ready = stack.pop()
        if term in done:
            continue
        if is_ready:
            done[term] = None
        else:
            stack.append((term, True))
            stack.extend((source, False) for source in reversed(tuple(terms_in(term.args))))
    return tuple(done)
