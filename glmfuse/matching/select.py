"""Which kernel of which target takes a site; kernels come in as values, no target is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx
from torch._ops import OpOverload

from glmfuse.matching.check import Site
from glmfuse.matching.escape import Escape, Footprint, computes, footprint, works
from glmfuse.matching.layout import Layout
from glmfuse.matching.match import Mismatch
from glmfuse.matching.overwrite import Overwrite, overwrite
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.report.stage import Stage


@dataclass(frozen=True, slots=True)
class Request:
    """What a kernel is asked to take: a pattern at one kind of site.

    tensors: the layout of each tensor argument that is there. outputs: what must come out.
    compute_nodes: how many operators of the graph the site replaces, operators: the same with casts and copies.
    launch_us: what a launch is held to cost, in microseconds. unlike: an operator that the pattern
    function calls on other layouts than the graph does, if there is one: the last bit may differ then.
    over: that the result may be written over the argument that the pattern updates, or why not.
    """

    pattern: Pattern
    variant: Variant
    tensors: Mapping[str, Layout]
    scalars: Mapping[str, Any]
    outputs: tuple[Layout, ...]
    compute_nodes: int
    operators: int
    launch_us: float
    unlike: str | None = None
    over: Overwrite | str | None = None

    @property
    def kept(self) -> str | None:
        """Why the result may not be written over the argument, if it may not."""
        if self.over is None:
            return f"its kernel overwrites an argument, and {self.pattern.name} updates none"
        return self.over if isinstance(self.over, str) else None


@dataclass(frozen=True, slots=True)
class Gain:
    """What a site takes with and without its fusion, in microseconds, every launch included.

    fused: the kernel. separate: the operators or kernels that it replaces. basis: where the figures are from.
    over_parts: `separate` is of kernels of smaller patterns, which save by themselves what the graph's operators take
    beyond them. by_launches: what each operator counts for in `separate`, where launches are all that it is made of.
    """

    fused: float
    separate: float
    basis: str
    over_parts: bool = False
    by_launches: float = 0.0

    @classmethod
    def of_launches(cls, replaced: int, launch_us: float) -> Gain:
        """Of one kernel for so many operators, by the launches alone."""
        return cls(launch_us, replaced * launch_us, "by launches alone", by_launches=launch_us)

    @property
    def saved(self) -> float:
        """Microseconds that fusing saves; only above 0 is a site fused."""
        return self.separate - self.fused

    def __str__(self) -> str:
        return f"{self.fused:.1f} us fused, {self.separate:.1f} us apart ({self.basis})"


class Kernel(Protocol):
    """What selection needs of a kernel."""

    @property
    def overwrites(self) -> bool:
        """Whether it writes its result over the argument that its pattern updates."""

    def supports(self, request: Request) -> str | None:
        """None when the kernel takes it, otherwise the reason why not, with the number that exceeds."""

    def gain(self, request: Request) -> Gain:
        """What fusing saves."""


class Target(Protocol):
    """A named table of kernels."""

    @property
    def name(self) -> str:
        """The name in options and reports."""

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """Kernels by pattern name."""

    def op(self, pattern: Pattern, reference: OpOverload) -> OpOverload:
        """The op to put in the graph for this overload of the pattern."""

    def body(self, site: Site) -> fx.GraphModule | str | None:
        """The aten graph to put in the op's place, None where the op stays, or why it does not fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A site that a kernel takes. op: what takes the place of its nodes; body: what takes that of the op.

    write_back: the node that copies the result into the argument updated, not needed any more.
    """

    site: Site
    target: str
    op: OpOverload
    gain: Gain
    footprint: Footprint
    body: fx.GraphModule | None = None
    write_back: fx.Node | None = None


def select(
    sites: Iterable[Site], targets: Sequence[Target], launch_us: float
) -> tuple[list[Candidate], list[Mismatch]]:
    """For each site the first target whose kernel takes it and gains, or why there is none.

    A refusal has the code "loss" where fusing would take longer, "gain" where it would gain nothing, unless
    a kernel was refused for another reason.
    """
    candidates: list[Candidate] = []
    refused: list[Mismatch] = []
    for site in sites:
        request = request_of(site, launch_us)
        chosen = _first_target(request, site, targets)
        if isinstance(chosen, Mismatch):
            refused.append(chosen)
            continue
        target, kernel, gain = chosen
        space = footprint(site.cone)
        if isinstance(space, Escape):
            expected, found = f"{space.node.name} read only inside the site", f"also read by {space.user.name}"
            refused.append(site.match.refused(Stage.ESCAPE, "escape", expected, found, space.node))
            continue
        body = target.body(site)
        body = site.unlike_op() if body is None else body
        if isinstance(body, str):
            reason = f"{target.name}: {body}"
            refused.append(site.match.refused(Stage.KERNEL, "kernel", "a kernel that fits the site", reason))
            continue
        op = target.op(site.match.pattern, site.match.call()[0])
        over = request.over if kernel.overwrites else None
        back = over.write_back if isinstance(over, Overwrite) else None
        candidates.append(Candidate(site, target.name, op, gain, space, body, back))
    return candidates, refused


def _first_target(request: Request, site: Site, targets: Sequence[Target]) -> tuple[Target, Kernel, Gain] | Mismatch:
    reasons: list[str] = []
    code = "gain"
    for target in targets:
        kernel = target.kernels.get(site.match.pattern.name)
        if kernel is None:
            reasons.append(f"{target.name}: has no kernel for {site.match.pattern.name}")
        elif (reason := (request.kept if kernel.overwrites else None) or kernel.supports(request)) is not None:
            reasons.append(f"{target.name}: {reason}")
            code = "kernel"
        elif not (gain := kernel.gain(request)).saved > 0:
            reasons.append(f"{target.name}: {gain}")
            code = "loss" if gain.saved < 0 and code == "gain" else code
        else:
            return target, kernel, gain
    reason = "; ".join(reasons) or "no target is enabled"
    return site.match.refused(Stage.KERNEL, code, "a kernel that takes the site and gains", reason)


def request_of(site: Site, launch_us: float) -> Request:
    """The site as its kernels are asked about it."""
    tensors = {name: Layout.of(node.meta["val"]) for name, node in site.inputs.items() if node is not None}
    match, outputs = site.match, site.trace.outputs
    return Request(
        pattern=match.pattern,
        variant=match.variant,
        tensors=tensors,
        scalars=match.scalars,
        outputs=outputs,
        compute_nodes=sum(1 for node in site.cone.nodes if computes(node)),
        operators=sum(1 for node in site.cone.nodes if works(node)),
        launch_us=launch_us,
        unlike=site.unlike_calls(),
        over=overwrite(site) if match.pattern.updates else None,
    )
