"""Kernels that compile at their first call, called once before an engine captures them.

An engine that captures a graph at its first call, as npugraph_ex does, runs nothing before that. A rehearsal calls
each such op on scratch tensors of the shapes that it is about to get; caches and other results are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from glmfuse.canonicalize.term import size_of
from glmfuse.capture import nodes_in
from glmfuse.lowering.ops import COMPILING

Compiled = Callable[[list[Any]], Any]
Sizes = Mapping[sympy.Basic, int]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What to call before a graph is captured.

    calls: each op that compiles, with its arguments as the graph has them: fake tensors, numbers and symbols.
    arguments: the graph's own, whose sizes tell what the symbols are.
    """

    calls: tuple[tuple[OpOverload, tuple[Any, ...]], ...]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, module: fx.GraphModule) -> Rehearsal:
        """Read a graph, and those that it calls, before an engine changes it."""
        calls = tuple(
            (node.target, tuple(_value(argument) for argument in node.args))
            for node in nodes_in(module)
            if isinstance(node.target, OpOverload) and node.target in COMPILING
        )
        return cls(calls, tuple(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"))

    def before(self, compiled: Compiled) -> Compiled:
        """The engine's boxed callable, rehearsed before its first call for each set of sizes."""
        if not self.calls:
            return compiled
        done: set[tuple[int, ...]] = set()

        def run(args: list[Any]) -> Any:
            sizes = _sizes(self.arguments, args)
            if (key := tuple(sizes.values())) not in done:
                self.run(sizes)
                done.add(key)
            return compiled(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def run(self, sizes: Sizes) -> None:
        """Call each op once for each kind of arguments that it gets."""
        kinds = dict.fromkeys((op, tuple(_kind(value, sizes) for value in values)) for op, values in self.calls)
        for op, arguments in kinds:
            op(*(_scratch(kind) for kind in arguments))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A tensor without its data, its sizes known."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _sizes(arguments: Sequence[Any], given: Sequence[Any]) -> dict[sympy.Basic, int]:
    """The value of each symbol that is the size of an argument, or an argument."""
    found: dict[sympy.Basic, int] = {}
    for fake, real in zip(arguments, given, strict=True):
        pairs = zip(fake.shape, real.shape, strict=True) if isinstance(fake, Tensor) else [(fake, real)]
        for size, value in pairs:
            if isinstance(size, torch.SymInt) and isinstance(symbol := size_of(size), sympy.Symbol):
                found[symbol] = int(value)
    return found


def _kind(value: Any, sizes: Sizes) -> Any:
    """What a call needs to know of an argument."""
    if not isinstance(value, Tensor):
        return _number(value, sizes)
    shape, stride = (tuple(_number(item, sizes) for item in items) for items in (value.shape, value.stride()))
    return _Kind(shape, stride, value.dtype, value.device)


def _number(value: Any, sizes: Sizes) -> Any:
    return int(sympy.sympify(size_of(value)).xreplace(sizes)) if isinstance(value, torch.SymInt) else value


def _scratch(kind: Any) -> Any:
    """Zeros: a kernel may use integers as places, and the first place is always there."""
    if not isinstance(kind, _Kind):
        return kind
    return torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device=kind.device).zero_()
