"""`verify=True`: each fused site runs beside the subgraph that it replaces, on every call's real inputs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from glmfuse.errors import VerificationError
from glmfuse.lowering.tolerance import allowed
from glmfuse.matching.order import kept_order
from glmfuse.matching.rewrite import RESULTS, SITE, restore_order
from glmfuse.matching.select import Candidate
from glmfuse.report.report import GraphReport, Report, Verified

_LIBRARY = torch.library.Library("glmfuse_verify", "DEF")
_LIBRARY.define(
    "compare(Tensor[] fused, Tensor[] original, int report, int graph, str site, int unordered) -> Tensor[]"
)


_VERIFYING: dict[int, Report] = {}
"""Reports of graphs that compare; their ops outlive the compilation, and name sites from here."""


def _compare(
    fused: Sequence[Tensor], original: Sequence[Tensor], report: int, graph: int, site: str, unordered: int
) -> list[Tensor]:
    entry = _VERIFYING[report].graphs[graph].verified[site]
    entry.calls += 1
    for position, (ours, theirs) in enumerate(zip(fused, original, strict=True)):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape) or _steps(ours) != _steps(theirs):
            raise VerificationError(
                f"{entry.pattern} at {entry.node} (target {entry.target}), output {position}: "
                f"expected {_describe(theirs)}, found {_describe(ours)}"
            )
    pairs = zip(_in_one_order(fused, unordered), _in_one_order(original, unordered), strict=True)
    for position, (ours, theirs) in enumerate(pairs):
        absolute, relative = difference(ours, theirs)
        entry.absolute, entry.relative = max(entry.absolute, absolute), max(entry.relative, relative)
        if not relative <= allowed(theirs.dtype):
            raise VerificationError(
                f"{entry.pattern} at {entry.node} (target {entry.target}), output {position}: relative L2 error "
                f"{relative:.3g} exceeds {allowed(theirs.dtype):.3g} for {theirs.dtype}, largest error {absolute:.3g}. "
                f"Compile with options={{'disable': ('{entry.pattern}',)}} to go on without this fusion."
            )
    return [tensor.clone() for tensor in fused]


def _in_one_order(outputs: Sequence[Tensor], unordered: int) -> list[Tensor]:
    """Outputs with the first ones, whose last axis is in no order, sorted together by the last of these."""
    if not unordered:
        return list(outputs)
    order = outputs[unordered - 1].argsort(-1)
    return [*(output.gather(-1, order) for output in outputs[:unordered]), *outputs[unordered:]]


def _steps(tensor: Tensor) -> tuple[int, ...]:
    return tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}"


def _fake(
    fused: Sequence[Tensor], original: Sequence[Tensor], report: int, graph: int, site: str, unordered: int
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in fused]


torch.library.impl("glmfuse_verify::compare", "CompositeExplicitAutograd", _compare, lib=_LIBRARY)
torch.library.register_fake("glmfuse_verify::compare", _fake, lib=_LIBRARY)

COMPARE = torch.ops.glmfuse_verify.compare.default
"""The op that compares; it reads its tensors on the host."""


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


def add_comparisons(graph: fx.Graph, fused: Sequence[fx.Node], body: str, report: Report, into: GraphReport) -> None:
    """Send everything that reads a fused node through a comparison with the nodes that it stands for."""
    _VERIFYING[report.id] = report
    order = list(kept_order(graph))
    for node in fused:
        candidate: Candidate = node.meta[SITE]
        original = [held[0] for held in candidate.site.cone.outputs]
        site = f"{body}/{node.name}"
        pattern = candidate.site.match.pattern
        into.verified[site] = Verified(pattern.name, candidate.target, original[0].name)
        _add_comparison(graph, node, original, (report.id, into.index, site, pattern.unordered))
    restore_order(graph, order)
    graph.lint()


def _add_comparison(
    graph: fx.Graph, fused: fx.Node, original: Sequence[fx.Node], where: tuple[int, int, str, int]
) -> None:
    outputs: list[fx.Node] = fused.meta[RESULTS]
    readers: Mapping[fx.Node, list[fx.Node]] = {node: list(node.users) for node in outputs}
    with graph.inserting_after(outputs[-1]):
        checked = graph.call_function(COMPARE, (outputs, list(original), *where))
    checked.meta["val"] = [node.meta["val"] for node in original]
    with graph.inserting_after(checked):
        for position, node in enumerate(outputs):
            item = graph.call_function(operator.getitem, (checked, position))
            item.meta["val"] = original[position].meta["val"]
            for reader in readers[node]:
                reader.replace_input_with(node, item)
