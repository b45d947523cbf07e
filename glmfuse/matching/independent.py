"""The heaviest independent set of a conflict graph, exactly: small components by cliques, large ones split."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

_UNIT = 1000
"""networkx weighs cliques in whole numbers: gains count to a thousandth."""

_SMALL = 24
"""Components up to this size go to networkx, whose clique search is exponential in the worst case."""


def heaviest(conflicts: nx.Graph) -> set[int]:
    """The vertices of most total `gain` (above 0) of which no two are joined; the first of equals."""
    chosen: set[int] = set()
    for component in nx.connected_components(conflicts):
        chosen |= _of_component(conflicts.subgraph(component).copy())
    return chosen


def _of_component(graph: nx.Graph) -> set[int]:
    chosen: set[int] = set()
    while (vertex := next((v for v in graph if _outweighs(graph, v)), None)) is not None:
        chosen.add(vertex)
        graph.remove_nodes_from([vertex, *graph[vertex]])
    for component in [graph.subgraph(found).copy() for found in nx.connected_components(graph)]:
        chosen |= _by_clique(component) if len(component) <= _SMALL else _by_branching(component)
    return chosen


def _outweighs(graph: nx.Graph, vertex: int) -> bool:
    """Whether some heaviest set holds the vertex, since it weighs as much as all that it excludes."""
    return bool(graph.nodes[vertex]["gain"] >= _weight(graph, graph[vertex]))


def _by_clique(graph: nx.Graph) -> set[int]:
    free = nx.complement(graph)
    for vertex, gain in graph.nodes(data="gain"):
        free.nodes[vertex]["weight"] = max(round(gain * _UNIT), 1)
    return set(nx.max_weight_clique(free, weight="weight")[0])


def _by_branching(graph: nx.Graph) -> set[int]:
    """With or without a vertex in the middle, whose removal leaves smaller components."""
    widest = max(degree for _, degree in graph.degree)
    middle = [vertex for vertex, degree in graph.degree if degree == widest]
    vertex = middle[len(middle) // 2]
    without, beside = graph.copy(), graph.copy()
    without.remove_node(vertex)
    beside.remove_nodes_from([vertex, *graph[vertex]])
    taken, left = {vertex} | heaviest(beside), heaviest(without)
    return taken if _weight(graph, taken) >= _weight(graph, left) else left


def _weight(graph: nx.Graph, vertices: Iterable[int]) -> float:
    return float(sum(graph.nodes[vertex]["gain"] for vertex in vertices))
