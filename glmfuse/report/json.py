"""The report as data. The schema is stable: fields are added under the same version, never changed.

`{"schema_version": 1, "notes": [...], "graphs": [{"index", "engine", "targets", "notes", "seconds":
{stage: float}, "counts": {pattern: {"matched", "chosen", "absorbed"}}, "verified": [...], "bodies":
[{"name", "calls", "nodes_captured", "nodes_fused", "rows": [Row], "cost": Cost, "left_over": [LeftOver]}]}]}`, where a
Row has the fields of `glmfuse.report.report.Row`, the others those of `glmfuse.report.left_over`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from glmfuse.report.report import ABSORBED, CHOSEN, SCHEMA_VERSION, Body, GraphReport, Report


def to_json(report: Report) -> dict[str, Any]:
    """The report as dictionaries, lists, strings and numbers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "notes": list(report.notes),
        "graphs": [graph_to_json(graph) for graph in report.graphs],
    }


def graph_to_json(graph: GraphReport) -> dict[str, Any]:
    """One graph as dictionaries, lists, strings and numbers."""
    matched, chosen, absorbed = graph.count(), graph.count(CHOSEN), graph.count(ABSORBED)
    return {
        "index": graph.index,
        "engine": graph.engine,
        "targets": list(graph.targets),
        "notes": list(graph.notes),
        "seconds": dict(graph.seconds),
        "counts": {
            name: {"matched": matched[name], "chosen": chosen[name], "absorbed": absorbed[name]}
            for name in sorted(matched)
        },
        "verified": [asdict(entry) for entry in graph.verified.values()],
        "bodies": [_body(body) for body in graph.bodies],
    }


def _body(body: Body) -> dict[str, Any]:
    return {
        "name": body.name,
        "calls": body.calls,
        "nodes_captured": body.nodes_captured,
        "nodes_fused": body.nodes_fused,
        "rows": [asdict(row) for row in body.rows],
        "cost": asdict(body.cost),
        "left_over": [asdict(entry) for entry in body.left_over],
    }
