"""The heaviest independent set of a conflict graph: exactly, as long as that takes a bounded amount of work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

_UNIT = 1000
"""networkx weighs cliques in whole numbers: gains count to a thousandth."""

_SMALL = 24
"""Components up to this size go to networkx, whose clique search is exponential in the worst case."""


_BRANCHES = 200
"""Vertices to try both ways in one graph; past that, knots of overlaps are cut by the locally best vertex."""


def heaviest(conflicts: nx.Graph) -> set[int]:
    """The vertices of most total `gain` (above 0) of which no two are joined; the first of equals."""
    return _Search().heaviest(conflicts)


@dataclass(slots=True)
class _Search:
    branches: int = 0

    def heaviest(self, conflicts: nx.Graph) -> set[int]:
        chosen: set[int] = set()
        for component in nx.connected_components(conflicts):
            chosen |= self.of_component(conflicts.subgraph(component).copy())
        return chosen

    def of_component(self, graph: nx.Graph) -> set[int]:
        chosen: set[int] = set()
        while (vertex := next((v for v in graph if _outweighs(graph, v)), None)) is not None:
            chosen.add(vertex)
            graph.remove_nodes_from([vertex, *graph[vertex]])
        for component in [graph.subgraph(found).copy() for found in nx.connected_components(graph)]:
            chosen |= _by_clique(component) if len(component) <= _SMALL else self.by_branching(component)
        return chosen

    def by_branching(self, graph: nx.Graph) -> set[int]:
        """With or without a vertex in the middle, whose removal leaves smaller components."""
        self.branches += 1
        if self.branches > _BRANCHES:
            vertex = max(graph, key=lambda v: (graph.nodes[v]["gain"] - _weight(graph, graph[v]), -v))
            return {vertex} | self.heaviest(_without(graph, [vertex, *graph[vertex]]))
        widest = max(degree for _, degree in graph.degree)
        middle = [vertex for vertex, degree in graph.degree if degree == widest]
        vertex = middle[len(middle) // 2]
        taken = {vertex} | self.heaviest(_without(graph, [vertex, *graph[vertex]]))
        left = self.heaviest(_without(graph, [vertex]))
        return taken if _weight(graph, taken) >= _weight(graph, left) else left


def _without(graph: nx.Graph, vertices: Iterable[int]) -> nx.Graph:
    rest = graph.copy()
    rest.remove_nodes_from(list(vertices))
    return rest


def _outweighs(graph: nx.Graph, vertex: int) -> bool:
    """Whether some heaviest set holds the vertex, since it weighs as much as all that it excludes."""
    return bool(graph.nodes[vertex]["gain"] >= _weight(graph, graph[vertex]))


def _by_clique(graph: nx.Graph) -> set[int]:
    free = nx.complement(graph)
    for vertex, gain in graph.nodes(data="gain"):
        free.nodes[vertex]["weight"] = max(round(gain * _UNIT), 1)
    return set(nx.max_weight_clique(free, weight="weight")[0])


def _weight(graph: nx.Graph, vertices: Iterable[int]) -> float:
    return float(sum(graph.nodes[vertex]["gain"] for vertex in vertices))
