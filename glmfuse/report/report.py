"""What happened to each graph, as data: filled by every stage, readable at any time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from glmfuse.report.left_over import NOTHING, Cost, LeftOver
from glmfuse.report.stage import Stage

SCHEMA_VERSION: Final = 1
"""Version of the JSON form; grows when a field changes its meaning or goes away."""

CHOSEN: Final = "chosen"
ABSORBED: Final = "absorbed"
MATCHED: Final = "matched"
MISSED: Final = "missed"

_IDS = itertools.count()


@dataclass(frozen=True, slots=True)
class Row:
    """One pattern at one site.

    status: chosen (fused), absorbed (part of a chosen site), matched (proven, but not fused) or missed.
    stage: the furthest stage reached. code, expected, found: why it went no further. node, source: the
    captured node and the model's line. target, gain, scalars, replaced: of a chosen site, its target,
    the microseconds that fusing is held to save, its captured arguments, and how many captured nodes it replaces.
    """

    pattern: str
    status: str
    stage: str
    node: str
    source: str = ""
    code: str = ""
    expected: str = ""
    found: str = ""
    target: str = ""
    gain: float = 0.0
    variant: str = ""
    scalars: Mapping[str, Any] = field(default_factory=dict)
    replaced: int = 0
    matched_terms: int = 0
    total_terms: int = 0

    @property
    def is_site(self) -> bool:
        """Whether the pattern is there, fused or not."""
        return self.status != MISSED


@dataclass(slots=True)
class Body:
    """One graph, or a body that higher-order operators of it call `calls` times.

    left_over: the operators that belong to no fused site. cost: of the whole body as captured.
    """

    name: str
    calls: int
    rows: tuple[Row, ...]
    nodes_captured: int
    nodes_fused: int = 0
    edges: tuple[tuple[str, str], ...] = ()
    ops: Mapping[str, str] = field(default_factory=dict)
    owner: Mapping[str, int] = field(default_factory=dict)
    captured: str = ""
    fused: str = ""
    left_over: tuple[LeftOver, ...] = ()
    cost: Cost = NOTHING


@dataclass(slots=True)
class GraphReport:
    """One captured graph: its bodies, the engine that got it, and the seconds that each stage took."""

    index: int
    engine: str = ""
    targets: tuple[str, ...] = ()
    bodies: list[Body] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verified: dict[str, Verified] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start

    def rows(self) -> Iterator[Row]:
        """Every row, a shared body's once."""
        return itertools.chain.from_iterable(body.rows for body in self.bodies)

    def count(self, status: str | None = None) -> Counter[str]:
        """Sites by pattern, with this status or any; a shared body counts once for each call."""
        found: Counter[str] = Counter()
        for body in self.bodies:
            for row in body.rows:
                if row.is_site and status in (None, row.status):
                    found[row.pattern] += body.calls
        return found

    def closest_miss(self, pattern: str) -> Row | None:
        """Where the pattern came nearest without being there."""
        misses = [row for row in self.rows() if row.pattern == pattern and not row.is_site]
        return max(misses, key=_reach, default=None)


@dataclass(slots=True)
class Verified:
    """The largest error that `verify=True` saw at one site: absolute, and as relative L2."""

    pattern: str
    target: str
    node: str
    calls: int = 0
    absolute: float = 0.0
    relative: float = 0.0


class Report:
    """Every graph of a compilation, in the order of capture.

    Give one to `options={"report": report}` to read it after compiling; `glmfuse.explain` returns one.
    `str(report)` is the text form, `report.to_json()` the stable data form.
    """

    def __init__(self) -> None:
        self.id = next(_IDS)
        self.graphs: list[GraphReport] = []
        self.notes: list[str] = []

    def new_graph(self) -> GraphReport:
        """Start the report of the next captured graph."""
        graph = GraphReport(len(self.graphs))
        self.graphs.append(graph)
        return graph

    def note(self, text: str) -> None:
        """Say something about the whole compilation, once."""
        if text not in self.notes:
            self.notes.append(text)

    def count(self, status: str | None = None) -> Counter[str]:
        """Sites of all graphs by pattern: `report.count("chosen")["rms_norm"]`."""
        return sum((graph.count(status) for graph in self.graphs), Counter())

    def rows(self) -> Iterator[Row]:
        """Every row of every graph."""
        return itertools.chain.from_iterable(graph.rows() for graph in self.graphs)

    def __str__(self) -> str:
        from glmfuse.report.text import render

        return render(self)

    def to_json(self) -> dict[str, Any]:
        """The stable data form; see `glmfuse.report.json`."""
        from glmfuse.report.json import to_json

        return to_json(self)


def _reach(row: Row) -> tuple[int, float]:
    return Stage[row.stage], row.matched_terms / max(row.total_terms, 1)
