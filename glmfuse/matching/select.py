"""Which kernel of which target takes a site; kernels come in as values, no target is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch._ops import OpOverload

from glmfuse.matching.check import Layout, Site
from glmfuse.matching.escape import Escape, Footprint, compute_nodes, footprint
from glmfuse.matching.match import Mismatch
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.report.stage import Stage


@dataclass(frozen=True, slots=True)
class Request:
    """What a kernel is asked to take: a pattern at one kind of site.

    tensors: the layout of each tensor argument that is there. outputs: what must come out.
    compute_nodes: how many operators of the graph the site replaces. unlike: an operator that the pattern
    function calls on other layouts than the graph does, if there is one: the last bit may differ then.
    """

    pattern: Pattern
    variant: Variant
    tensors: Mapping[str, Layout]
    scalars: Mapping[str, Any]
    outputs: tuple[Layout, ...]
    compute_nodes: int
    unlike: str | None = None


class Kernel(Protocol):
    """What selection needs of a kernel."""

    def supports(self, request: Request) -> str | None:
        """None when the kernel takes it, otherwise the reason why not, with the number that exceeds."""

    def gain(self, request: Request) -> float:
        """What fusing saves, in kernel launches or their worth; only above 0 is a site fused."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A site that a kernel takes. owned: the nodes that it replaces. op: what takes their place."""

    site: Site
    target: str
    op: OpOverload
    gain: float
    footprint: Footprint


def select(sites: Iterable[Site], targets: Sequence[Target]) -> tuple[list[Candidate], list[Mismatch]]:
    """For each site the first target whose kernel takes it and gains, or why there is none.

    A refusal has the code "gain" where no kernel would gain and none was refused for another reason.
    """
    candidates: list[Candidate] = []
    refused: list[Mismatch] = []
    for site in sites:
        chosen = _first_target(site, targets)
        if isinstance(chosen, Mismatch):
            refused.append(chosen)
            continue
        target, gain = chosen
        space = footprint(site.cone)
        if isinstance(space, Escape):
            expected, found = f"{space.node.name} read only inside the site", f"also read by {space.user.name}"
            refused.append(site.match.refused(Stage.ESCAPE, "escape", expected, found, space.node))
            continue
        op = target.op(site.match.pattern, site.match.call()[0])
        candidates.append(Candidate(site, target.name, op, gain, space))
    return candidates, refused


def _first_target(site: Site, targets: Sequence[Target]) -> tuple[Target, float] | Mismatch:
    request = request_of(site)
    reasons: list[str] = []
    code = "gain"
    for target in targets:
        kernel = target.kernels.get(site.match.pattern.name)
        if kernel is None:
            reasons.append(f"{target.name}: has no kernel for {site.match.pattern.name}")
        elif (reason := kernel.supports(request)) is not None:
            reasons.append(f"{target.name}: {reason}")
            code = "kernel"
        elif not (gain := kernel.gain(request)) > 0:
            reasons.append(f"{target.name}: fusing gains {gain:g}")
        else:
            return target, gain
    reason = "; ".join(reasons) or "no target is enabled"
    return site.match.refused(Stage.KERNEL, code, "a kernel that takes the site and gains", reason)


def request_of(site: Site) -> Request:
    """The site as its kernels are asked about it."""
    tensors = {name: Layout.of(node.meta["val"]) for name, node in site.inputs.items() if node is not None}
    match, outputs = site.match, site.trace.outputs
    replaced = compute_nodes(site.cone)
    return Request(match.pattern, match.variant, tensors, match.scalars, outputs, replaced, site.unlike_calls())
