"""A pattern function traced once, as terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize import Canonical, Term, canonicalize, terms_in
from glmfuse.capture import as_tuple, trace
from glmfuse.matching.pattern import Pattern, patterns_as_ops
from glmfuse.matching.record import record


@dataclass(frozen=True, slots=True)
class Traced:
    """One trace of a pattern function: its terms, and which of these are arguments."""

    canonical: Canonical
    inputs: Mapping[str, Term]
    outputs: tuple[Term, ...]

    @classmethod
    def of(cls, graph: fx.Graph, names: Iterable[str]) -> Traced:
        """From the aten graph; names: its arguments'."""
        canonical = canonicalize(graph)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        inputs = {name: canonical.term_of[node] for name, node in zip(names, placeholders, strict=True)}
        return cls(canonical, inputs, canonical.outputs[0] if _nested(canonical) else canonical.outputs)

    def live(self) -> tuple[Term, ...]:
        """The terms between the arguments and the outputs, producers first."""
        return live_terms(self.outputs)


def record_pattern(
    pattern: Pattern,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
    function: Callable[..., Any] | None = None,
) -> Traced:
    """The pattern's function, or another of its arguments, on fake tensors of known sizes; what it calls are ops."""
    call, inputs = _call(pattern, tensors, scalars, True, function), tuple(tensors.values())
    return Traced.of(record(call, inputs) or trace(call, inputs).graph, tensors)


def trace_pattern(
    pattern: Pattern,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
    as_ops: bool = True,
    function: Callable[..., Any] | None = None,
) -> tuple[Traced, fx.GraphModule]:
    """The same in any sizes, as terms and as a module that can be put into a model's graph.

    as_ops keeps the patterns that it calls as ops.
    """
    module = trace(_call(pattern, tensors, scalars, as_ops, function), tuple(tensors.values()))
    return Traced.of(module.graph, tensors), module


def _call(
    pattern: Pattern,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
    as_ops: bool,
    function: Callable[..., Any] | None,
) -> Callable[..., tuple[torch.Tensor, ...]]:
    absent = {p.name: None for p in pattern.parameters if p.is_tensor and p.name not in tensors}

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with patterns_as_ops(as_ops):
            return as_tuple(
                (function or pattern.function)(**absent, **dict(zip(tensors, values, strict=True)), **scalars)
            )

    return call


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
