"""A target is a name and a table from pattern to kernel; its ops live in a namespace of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx
from torch._ops import OpOverload

from glmfuse.lowering.ops import COMPILING, make_op
from glmfuse.matching.check import Site
from glmfuse.matching.pattern import Pattern
from glmfuse.matching.select import Gain, Request


def takes_all(request: Request) -> str | None:
    """`supports` of a kernel that takes every site."""
    return None


def saved_launches(request: Request) -> Gain:
    """`gain` of a kernel that is one launch: the launches of the operators that it replaces, less one."""
    return Gain.of_launches(request.compute_nodes, request.launch_us)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel for one pattern.

    fn: called with the pattern's arguments by name, None for what is absent; returns fresh tensors laid
    out as the pattern function's. supports: None, or why the kernel does not take a site. gain: what
    fusing saves there. overwrites: it writes the argument that the pattern updates in place; it is given only
    sites where that is proven safe. Where it is inlined it returns that argument, elsewhere its result is not read.
    compiles: it compiles at its first call for some shapes, so engines that capture call it once before.
    """

    fn: Callable[..., Any]
    supports_fn: Callable[[Request], str | None] = takes_all
    gain_fn: Callable[[Request], Gain] = saved_launches
    overwrites: bool = False
    compiles: bool = False

    def supports(self, request: Request) -> str | None:
        """None when the kernel takes the site, otherwise the reason."""
        return self.supports_fn(request)

    def gain(self, request: Request) -> Gain:
        """What fusing the site saves."""
        return self.gain_fn(request)


@dataclass(frozen=True, eq=False)
class Target:
    """A named table of kernels.

    unavailable: why the target cannot be used here, or None. not_by_default: why it is used only when it
    is asked for by name, or None. inlined: the aten graph of a kernel at a site, for a target whose kernels
    are written in aten and compiled by the engine with all the rest.
    """

    name: str
    kernels: Mapping[str, Kernel]
    unavailable: Callable[[], str | None] = field(default=lambda: None)
    not_by_default: Callable[[], str | None] = field(default=lambda: None)
    inlined: Callable[[Kernel, Site], fx.GraphModule | str] | None = None
    _ops: dict[OpOverload, OpOverload] = field(default_factory=dict)

    def op(self, pattern: Pattern, reference: OpOverload) -> OpOverload:
        """The op that runs this target's kernel, `glmfuse_<target>::<pattern>`; made at first use.

        A second target of the same name, as a notebook makes when a cell runs again, gets a namespace
        of its own, so that each runs its own kernels.
        """
        if self.inlined is not None:
            return reference
        if reference not in self._ops:
            self._ops[reference] = self._make_op(pattern, reference)
        return self._ops[reference]

    def body(self, site: Site) -> fx.GraphModule | str | None:
        """The graph to put in the place of the op, for a target that is inlined, or why it does not fit."""
        return None if self.inlined is None else self.inlined(self.kernels[site.match.pattern.name], site)

    @cached_property
    def _namespace(self) -> str:
        _TARGETS_MADE[self.name] += 1
        made = _TARGETS_MADE[self.name]
        return f"glmfuse_{self.name}" + (f"_{made}" if made > 1 else "")

    def _make_op(self, pattern: Pattern, reference: OpOverload) -> OpOverload:
        kernel = self.kernels[pattern.name]
        op = make_op(self._namespace, pattern, reference, kernel.fn, overwrites=kernel.overwrites)
        if kernel.compiles:
            COMPILING.add(op)
        return op


_TARGETS_MADE: Counter[str] = Counter()
