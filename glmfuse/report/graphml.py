"""The report as GraphML: the captured graph, each node marked with the site that took it."""

from __future__ import annotations

from pathlib import Path

import networkx as nx

from glmfuse.report.report import Body, GraphReport


def to_networkx(body: Body) -> nx.DiGraph:
    """Captured nodes with their operator and, where fused, the site's number, pattern and target."""
    graph = nx.DiGraph()
    for name, op in body.ops.items():
        owner = body.owner.get(name)
        row = body.rows[owner] if owner is not None else None
        graph.add_node(
            name,
            op=op,
            site=-1 if owner is None else owner,
            pattern=row.pattern if row else "",
            target=row.target if row else "",
        )
    graph.add_edges_from(body.edges)
    return graph


def write_graphml(graph: GraphReport, path: Path) -> None:
    """Write one graph, its bodies side by side under their names."""
    whole = nx.DiGraph()
    for body in graph.bodies:
        part = to_networkx(body)
        prefix = f"{body.name}/" if len(graph.bodies) > 1 else ""
        whole = nx.union(whole, nx.relabel_nodes(part, {name: f"{prefix}{name}" for name in part}))
    nx.write_graphml(whole, path)
