"""The report as text for a console: what was fused, what nearly was, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from glmfuse.report.left_over import NOTHING, Cost, LeftOver, total
from glmfuse.report.report import ABSORBED, CHOSEN, MATCHED, GraphReport, Report, Row, Verified

_EXAMPLES = 3


def render(report: Report) -> str:
    """The whole report, graph by graph."""
    lines = [f"note: {note}" for note in report.notes]
    for graph in report.graphs:
        lines.extend(_graph(graph))
    return "\n".join(lines) if lines else "glmfuse: no graph was captured"


def render_graph(graph: GraphReport) -> str:
    """One graph of the report."""
    return "\n".join(_graph(graph))


def _graph(graph: GraphReport) -> Iterator[str]:
    captured = sum(body.nodes_captured for body in graph.bodies)
    fused = sum(body.nodes_fused for body in graph.bodies)
    yield f"graph {graph.index}: {captured} nodes captured, {fused} after fusion, engine {graph.engine or 'none'}"
    yield from (f"  note: {note}" for note in graph.notes)
    yield from _table(graph)
    unfused = [row for row in graph.rows() if row.status == MATCHED and row.code != "gain"]
    if unfused:
        yield "  proven but not fused:"
        yield from _grouped(unfused)
    missed = [row for row in graph.rows() if not row.is_site]
    if missed:
        yield "  near misses:"
        yield from _grouped(missed)
    yield from _left_over(graph)
    if graph.verified:
        yield "  verified, largest error over the calls so far:"
        yield from (_verified(entry) for entry in graph.verified.values())
    if graph.seconds:
        yield "  seconds: " + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in graph.seconds.items())


def _table(graph: GraphReport) -> Iterator[str]:
    counts = {status: graph.count(status) for status in (CHOSEN, ABSORBED, MATCHED)}
    total = graph.count()
    if not total:
        yield "  no pattern matched"
        return
    width = max(map(len, total)) + 2
    yield f"  {'pattern':<{width}}{'matched':>7}{'fused':>9}{'absorbed':>10}{'left':>7}  target"
    for pattern in sorted(total, key=lambda name: (-counts[CHOSEN][name], name)):
        targets = {row.target for row in graph.rows() if row.pattern == pattern and row.status == CHOSEN}
        yield (
            f"  {pattern:<{width}}{total[pattern]:>7}{counts[CHOSEN][pattern]:>9}{counts[ABSORBED][pattern]:>10}"
            f"{counts[MATCHED][pattern]:>7}  {', '.join(sorted(targets))}"
        ).rstrip()


def _left_over(graph: GraphReport) -> Iterator[str]:
    """What the engine gets as it was captured, the dearest first."""
    entries = [entry for body in graph.bodies for entry in body.left_over]
    if not entries:
        return
    whole = sum((body.cost.times(body.calls) for body in graph.bodies), NOTHING)
    left = sum((total(body.left_over).times(body.calls) for body in graph.bodies), NOTHING)
    yield f"  left to the engine: {len(entries)} operators, {_shares(left, whole)}"
    lines: dict[tuple[str, str], list[LeftOver]] = {}
    for entry in entries:
        lines.setdefault((entry.op, entry.source), []).append(entry)
    for (op, source), same in sorted(lines.items(), key=lambda line: -total(line[1]).bytes)[:_EXAMPLES]:
        yield f"    {op} x{len(same)}, {_shares(total(same), whole)}  {source}".rstrip()


def _shares(part: Cost, whole: Cost) -> str:
    moved, held, flops = part.share_of(whole)
    return f"{moved:.1%} of the bytes, {held:.1%} of weights and caches, {flops:.1%} of the FLOPs"


def _grouped(rows: Iterable[Row]) -> Iterator[str]:
    """Rows that say the same are told once, with the first places."""

    def says(row: Row) -> tuple[str, ...]:
        return (row.pattern, row.stage, row.code, row.expected, row.found)

    for (pattern, stage, _, expected, found), same in groupby(sorted(rows, key=says), says):
        places = list(same)
        yield f"    {pattern} x{len(places)}, stopped at {stage}: expected {expected}; found {found}"
        for row in places[:_EXAMPLES]:
            yield f"      at {row.node}" + (f"  {row.source}" if row.source else "")
        if len(places) > _EXAMPLES:
            yield f"      and {len(places) - _EXAMPLES} more"


def _verified(entry: Verified) -> str:
    return (
        f"    {entry.pattern} at {entry.node} ({entry.target}): absolute {entry.absolute:.3g}, "
        f"relative L2 {entry.relative:.3g}, {entry.calls} calls"
    )
