"""Which candidates to fuse: the most gain without overlap, and no cycle among the fused sites."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import fx

from glmfuse.matching.independent import heaviest
from glmfuse.matching.match import Mismatch
from glmfuse.matching.order import kept_order
from glmfuse.matching.select import Candidate
from glmfuse.matching.size_reads import needs_no_tensor
from glmfuse.matching.worth import worths
from glmfuse.report.stage import Stage


@dataclass(frozen=True, slots=True)
class Plan:
    """chosen: the candidates to fuse, in the order of the graph. rejected: why not the others."""

    chosen: tuple[Candidate, ...]
    rejected: tuple[Mismatch, ...]


def plan(graph: fx.Graph, candidates: Sequence[Candidate]) -> Plan:
    """The heaviest set of candidates that share no node and contract to an acyclic graph."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    rejected: list[Mismatch] = []
    usable = list(candidates)
    while True:
        chosen, lost = _without_overlaps(usable)
        cycle = _cycle(graph, chosen)
        if cycle is None:
            break
        guilty = min((node for node in cycle if isinstance(node, Candidate)), key=lambda item: item.gain.saved)
        usable.remove(guilty)
        rejected.append(
            guilty.site.match.refused(Stage.CYCLE, "cycle", "no way out of the site and back in", _witness(cycle))
        )
    rejected.extend(
        loser.site.match.refused(Stage.OVERLAP, "overlap", "nodes that no better site needs", _name(winner))
        for loser, winner in lost
    )
    ordered = sorted(chosen, key=lambda item: min(position[node] for node in item.footprint.owned))
    return Plan(tuple(ordered), tuple(rejected))


def _without_overlaps(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[tuple[Candidate, Candidate]]]:
    """The candidates to keep, and each other one with a kept one in its way."""
    conflicts = nx.Graph()  # over positions: numbers are walked in one order in every run
    conflicts.add_nodes_from(range(len(candidates)))
    owners: dict[fx.Node, list[int]] = {}
    for index, item in enumerate(candidates):
        for node in item.footprint.owned:
            owners.setdefault(node, []).append(index)
    for sharing in owners.values():
        conflicts.add_edges_from(itertools.combinations(sharing, 2))
    nx.set_node_attributes(conflicts, dict(enumerate(worths(candidates, conflicts))), "gain")
    best = heaviest(conflicts)
    lost = [
        (item, candidates[min(best & set(conflicts[index]))])
        for index, item in enumerate(candidates)
        if index not in best
    ]
    return [candidates[index] for index in sorted(best)], lost


def _cycle(graph: fx.Graph, chosen: Sequence[Candidate]) -> list[fx.Node | Candidate] | None:
    """A cycle of the graph in which every chosen site is one node; None when there is none."""
    owner: dict[fx.Node, Candidate] = {node: item for item in chosen for node in item.footprint.owned}
    contracted = nx.DiGraph()
    for source, user in _edges(graph, chosen, owner):
        if source is not user:
            contracted.add_edge(source, user)
    if nx.is_directed_acyclic_graph(contracted):
        return None
    return [edge[0] for edge in nx.find_cycle(contracted)]


Vertex = fx.Node | Candidate


def _edges(
    graph: fx.Graph, chosen: Iterable[Candidate], owner: Mapping[fx.Node, Candidate]
) -> Iterable[tuple[Vertex, Vertex]]:
    for item in chosen:
        for node in item.site.inputs.values():
            if node is not None:
                yield owner.get(node, node), item
    for node in graph.nodes:
        if node not in owner:
            for source in node.all_input_nodes:
                if source not in owner or not needs_no_tensor(node):
                    yield owner.get(source, source), node
    for before, after in kept_order(graph):
        yield owner.get(before, before), owner.get(after, after)


def _witness(cycle: Sequence[fx.Node | Candidate]) -> str:
    return " -> ".join(_name(item) for item in (*cycle, cycle[0]))


def _name(item: fx.Node | Candidate) -> str:
    if isinstance(item, fx.Node):
        return item.name
    anchor = item.site.match.anchor.node
    return f"{item.site.match.pattern.name} at {anchor.name if anchor else '?'}"
