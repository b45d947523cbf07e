"""Kernels that compile at their first call, called once before an engine captures them.

An engine that captures a graph at its first call, as npugraph_ex does, runs nothing before that. A rehearsal calls
each such op on scratch tensors of the shapes that it is about to get; caches and other results are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from glmfuse.canonicalize.term import size_of
from glmfuse.lowering.ops import COMPILING

Compiled = Callable[[list[Any]], Any]


def rehearsed(module: fx.GraphModule, compiled: Compiled) -> Compiled:
    """The engine's boxed callable, with a rehearsal before the first call for each set of sizes.

    module: the graph that was compiled, with its fake values. Without such ops in it, `compiled` itself.
    """
    calls = [node for graph in _graphs(module) for node in graph.nodes if node.target in COMPILING]
    if not calls:
        return compiled
    arguments = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    done: set[tuple[Any, ...]] = set()

    def run(args: list[Any]) -> Any:
        sizes = _sizes(arguments, args)
        if (key := tuple(sizes.values())) not in done:
            _rehearse(calls, sizes)
            done.add(key)
        return compiled(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _graphs(module: fx.GraphModule) -> Iterator[fx.Graph]:
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield inner.graph


def _sizes(arguments: Sequence[Any], given: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """The value of each symbol that is the size of an argument, or an argument."""
    found: dict[sympy.Symbol, int] = {}
    for fake, real in zip(arguments, given, strict=True):
        pairs = zip(fake.shape, real.shape, strict=True) if isinstance(fake, Tensor) else [(fake, real)]
        for size, value in pairs:
            if isinstance(size, torch.SymInt) and isinstance(symbol := size_of(size), sympy.Symbol):
                found[symbol] = int(value)
    return found


def _rehearse(calls: Sequence[fx.Node], sizes: Mapping[sympy.Symbol, int]) -> None:
    seen: set[Any] = set()
    for node in calls:
        kinds = tuple(_kind(argument, sizes) for argument in node.args)
        if (node.target, kinds) not in seen:
            seen.add((node.target, kinds))
            node.target(*(_scratch(kind) for kind in kinds))  # type: ignore[operator]


def _kind(argument: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
    """What a call needs to know of an argument: a number, or a tensor's shape, strides, dtype and device."""
    value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    if not isinstance(value, Tensor):
        return _number(value, sizes)
    shape, steps = ([_number(item, sizes) for item in items] for items in (value.shape, value.stride()))
    return tuple(shape), tuple(steps), value.dtype, value.device


def _number(value: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
    return int(sympy.sympify(size_of(value)).xreplace(sizes)) if isinstance(value, torch.SymInt) else value


def _scratch(kind: Any) -> Any:
    """Zeros: a kernel may use integers as places, and the first place is always there."""
    if not isinstance(kind, tuple):
        return kind
    shape, steps, dtype, device = kind
    return torch.empty_strided(shape, steps, dtype=dtype, device=device).zero_()
