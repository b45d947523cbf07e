"""`verify=True`: each fused site runs beside the subgraph that it replaces, on every call's real inputs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from glmfuse.errors import VerificationError
from glmfuse.lowering.tolerance import allowed
from glmfuse.matching.rewrite import SITE, restore_order
from glmfuse.matching.select import Candidate
from glmfuse.report.report import GraphReport, Report, Verified

_LIBRARY = torch.library.Library("glmfuse_verify", "DEF")
_LIBRARY.define("compare(Tensor[] fused, Tensor[] original, int report, int graph, str site) -> Tensor[]")


_VERIFYING: dict[int, Report] = {}
"""Reports of graphs that compare; their ops outlive the compilation, and name sites from here."""


def _compare(fused: Sequence[Tensor], original: Sequence[Tensor], report: int, graph: int, site: str) -> list[Tensor]:
    entry = _VERIFYING[report].graphs[graph].verified[site]
    entry.calls += 1
    for position, (ours, theirs) in enumerate(zip(fused, original, strict=True)):
        absolute, relative = difference(ours, theirs)
        entry.absolute, entry.relative = max(entry.absolute, absolute), max(entry.relative, relative)
        if not relative <= allowed(theirs.dtype):
            raise VerificationError(
                f"{entry.pattern} at {entry.node} (target {entry.target}), output {position}: relative L2 error "
                f"{relative:.3g} exceeds {allowed(theirs.dtype):.3g} for {theirs.dtype}, largest error {absolute:.3g}. "
                f"Compile with options={{'disable': ('{entry.pattern}',)}} to go on without this fusion."
            )
    return [tensor.clone() for tensor in fused]


def _fake(fused: Sequence[Tensor], original: Sequence[Tensor], report: int, graph: int, site: str) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in fused]


torch.library.impl("glmfuse_verify::compare", "CompositeExplicitAutograd", _compare, lib=_LIBRARY)
torch.library.register_fake("glmfuse_verify::compare", _fake, lib=_LIBRARY)


def difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest absolute and the relative L2 difference; infinite where only one side is finite."""
    if ours.numel() == 0 or torch.equal(ours, theirs):
        return 0.0, 0.0
    a, b = ours.double(), theirs.double()
    same = (a == b) | (a.isnan() & b.isnan())
    delta = torch.where(same, 0.0, a - b).nan_to_num(nan=torch.inf)
    scale = b.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).norm()
    absolute = delta.abs().max().item()
    return absolute, absolute if scale == 0 else (delta.norm() / scale).item()


def add_comparisons(graph: fx.Graph, fused: Sequence[fx.Node], report: Report, into: GraphReport) -> None:
    """Send everything that reads a fused node through a comparison with the nodes that it stands for."""
    _VERIFYING[report.id] = report
    for node in fused:
        candidate: Candidate = node.meta[SITE]
        _add_comparison(graph, node, [held[0] for held in candidate.site.cone.outputs], report, into)
    restore_order(graph)
    graph.lint()


def _add_comparison(
    graph: fx.Graph, fused: fx.Node, original: Sequence[fx.Node], report: Report, into: GraphReport
) -> None:
    candidate: Candidate = fused.meta[SITE]
    outputs = [fused] if len(original) == 1 else sorted(fused.users, key=lambda user: user.args[1])  # type: ignore[arg-type, return-value]
    into.verified[fused.name] = Verified(candidate.site.match.pattern.name, candidate.target, original[0].name)
    readers: Mapping[fx.Node, list[fx.Node]] = {node: list(node.users) for node in outputs}
    with graph.inserting_after(outputs[-1]):
        checked = graph.call_function(
            torch.ops.glmfuse_verify.compare.default, (outputs, list(original), report.id, into.index, fused.name)
        )
    checked.meta["val"] = [node.meta["val"] for node in original]
    with graph.inserting_after(checked):
        for position, node in enumerate(outputs):
            item = graph.call_function(operator.getitem, (checked, position))
            item.meta["val"] = original[position].meta["val"]
            for reader in readers[node]:
                reader.replace_input_with(node, item)
