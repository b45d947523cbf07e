"""From what the stages decided to the rows of the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize.term import describe_op
from glmfuse.matching.find import Found
from glmfuse.matching.match import Match, Mismatch
from glmfuse.matching.select import Candidate
from glmfuse.report.report import ABSORBED, CHOSEN, MATCHED, MISSED, Body, Row
from glmfuse.report.stage import Stage

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
_TORCH = str(Path(torch.__file__).parent)
_ORDER = (MATCHED, ABSORBED, CHOSEN)

_SiteKey = tuple[str, Any]


def body_of(name: str, calls: int, graph: fx.Graph) -> Body:
    """Describe a graph before anything is fused."""
    nodes = list(graph.nodes)
    return Body(
        name=name,
        calls=calls,
        rows=(),
        nodes_captured=len(nodes),
        edges=tuple((source.name, node.name) for node in nodes for source in node.all_input_nodes),
        ops={node.name: describe_op(node.target) if callable(node.target) else node.op for node in nodes},
        captured=str(graph),
    )


def rows_of(
    found: Found,
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate],
    unfueled: Sequence[Candidate],
    rejected: Iterable[Mismatch],
) -> tuple[tuple[Row, ...], dict[str, int]]:
    """One row for each pattern and site, in the order of the graph, and the row that owns each node."""
    reasons = {(miss.pattern.name, miss.anchor): miss for miss in rejected}
    gains = {candidate.site.match: candidate for candidate in candidates}
    best: dict[_SiteKey, tuple[Row, Candidate | None]] = {}
    absorbed = {part for candidate in chosen for part in _parts(candidate.site.match)}
    taken = {candidate.site.match: candidate for candidate in chosen}
    idle = {candidate.site.match for candidate in unfueled}
    for site in found.sites:
        match = site.match
        key = (match.pattern.name, match.outputs[0])
        if match in taken:
            row = _chosen(taken[match])
        elif match in absorbed:
            row = _row(match.pattern.name, ABSORBED, Stage.CHOSEN, match.anchor.node, match=match)
        elif match in idle:
            unfused = match.refused(Stage.CYCLE, "fuel", "fuel for this site", "none left")
            row = _missed(unfused, MATCHED, match, gains[match])
        else:
            row = _missed(reasons[match.pattern.name, match.anchor], MATCHED, match, gains.get(match))
        if key not in best or _rank(row) > _rank(best[key][0]):
            best[key] = (row, taken.get(match))
    misses = [(_missed(miss, MISSED), None) for miss in found.misses]
    ordered = [*best.values(), *misses]
    owner = {
        node.name: index
        for index, (_, candidate) in enumerate(ordered)
        if candidate is not None
        for node in (*candidate.footprint.owned, *filter(None, [candidate.write_back]))
    }
    return tuple(row for row, _ in ordered), owner


def source_of(node: fx.Node | None) -> str:
    """The model's line that a node comes from: `modeling_glm4_moe.py:324 return self.weight * ...`."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or "")) if node is not None else []
    frames = [frame for frame in frames if not frame["file"].startswith(_TORCH)] or frames
    if not frames:
        return ""
    last = frames[-1]
    return f"{last['file'].rpartition('/')[2]}:{last['line']} {last['code'].strip()}"


def _parts(match: Match) -> Iterator[Match]:
    for part in match.parts:
        yield part
        yield from _parts(part)


def _chosen(candidate: Candidate) -> Row:
    match = candidate.site.match
    return _row(
        match.pattern.name,
        CHOSEN,
        Stage.CHOSEN,
        match.anchor.node,
        match=match,
        target=candidate.target,
        gain=candidate.gain.saved,
        replaced=len(candidate.footprint.owned),
    )


def _missed(miss: Mismatch, status: str, match: Match | None = None, candidate: Candidate | None = None) -> Row:
    finding = miss.finding
    return _row(
        miss.pattern.name,
        status,
        miss.stage,
        finding.node or miss.anchor.node,
        match=match,
        code=finding.code,
        expected=finding.expected,
        found=finding.found,
        gain=candidate.gain.saved if candidate is not None else 0.0,
        matched_terms=miss.matched,
        total_terms=miss.total,
    )


def _row(
    pattern: str, status: str, stage: Stage, node: fx.Node | None, *, match: Match | None = None, **values: Any
) -> Row:
    if match is not None:
        values.setdefault("matched_terms", len(match.inner))
        values.setdefault("total_terms", len(match.inner))
        scalars = {name: _plain(value) for name, value in match.scalars.items()}
        values.update(variant=str(match.variant), scalars=scalars)
    return Row(pattern, status, stage.name, node.name if node is not None else "", source_of(node), **values)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def _rank(row: Row) -> tuple[int, int]:
    return _ORDER.index(row.status), Stage[row.stage]
