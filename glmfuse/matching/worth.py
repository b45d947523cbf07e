"""What each candidate is worth to a plan: its own gain, and what the candidates inside it would save without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import networkx as nx
from torch import fx

from glmfuse.matching.escape import computes
from glmfuse.matching.independent import heaviest
from glmfuse.matching.select import Candidate


def worths(candidates: Sequence[Candidate], conflicts: nx.Graph) -> list[float]:
    """Microseconds that each saves beside a graph without any fusion, so that gains of all sizes are of one scale.

    A block whose gain is over the kernels of its parts saves what the parts do besides. One judged by launches knows
    its parts for as many launches as they have operators, where their own gain says more. conflicts: over the places
    of candidates, joined where these share a node.
    """
    found = [candidate.gain.saved for candidate in candidates]
    for place in sorted(range(len(candidates)), key=lambda place: _size(candidates[place])):
        gain = candidates[place].gain
        if gain.over_parts or gain.by_launches:
            parts = _best(_inside(place, candidates, conflicts), found, conflicts)
            found[place] += sum(_beyond(gain.by_launches, candidates[part], found[part]) for part in parts)
    return found


def _size(candidate: Candidate) -> tuple[int, int]:
    """Blocks after their parts; of two that own the same nodes the one that may call the other comes later."""
    return len(candidate.footprint.owned), candidate.site.match.pattern.level


def _inside(place: int, candidates: Sequence[Candidate], conflicts: nx.Graph) -> list[int]:
    owned, size = candidates[place].footprint.owned, _size(candidates[place])
    return [
        other
        for other in conflicts[place]
        if candidates[other].footprint.owned <= owned and _size(candidates[other]) < size
    ]


def _best(places: Iterable[int], found: Sequence[float], conflicts: nx.Graph) -> set[int]:
    inside = nx.Graph(conflicts.subgraph(places))
    nx.set_node_attributes(inside, {place: found[place] for place in inside}, "gain")
    return heaviest(inside)


def _beyond(launch_us: float, part: Candidate, worth: float) -> float:
    """What a part is worth beyond the launches that its block has counted for it already."""
    return max(worth - launch_us * (_count(part.footprint.owned) - 1), 0.0) if launch_us else worth


def _count(nodes: Iterable[fx.Node]) -> int:
    return sum(1 for node in nodes if computes(node))
