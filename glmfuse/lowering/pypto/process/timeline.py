"""What the cost model writes: its tasks with their times, and which wait for which."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx

from glmfuse.lowering.pypto.chip import ASCEND_910B, CYCLES_PER_MICROSECOND
from glmfuse.lowering.pypto.process.messages import Simulation

_KINDS = ("AIC", "AIV")
_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Task:
    """One task on one core, in cycles."""

    kind: str
    core: int
    graph: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """One simulated launch. tasks: by the number of the round and of the task; waits: edges between these."""

    tasks: Mapping[_Key, Task]
    waits: tuple[tuple[_Key, _Key], ...]

    @classmethod
    def read(cls, folder: Path) -> Timeline:
        """From the folder that pypto wrote into."""
        (swim,) = folder.glob("output_*/CostModelSimulationOutput/_simulate.swim.json")
        lanes = [lane for lane in json.loads(swim.read_text()) if lane["coreType"] in _KINDS]
        tasks = {
            (task["seqNo"], task["taskId"]): Task(
                lane["coreType"], lane["blockIdx"], task["subGraphId"], task["execStart"], task["execEnd"]
            )
            for lane in lanes
            for task in lane["tasks"]
        }
        with open(swim.parent.parent / "dyn_topo.txt") as rows:
            waits = tuple(
                ((int(row[0]), int(row[1])), (int(row[0]), int(successor)))
                for row in list(csv.reader(rows))[1:]
                for successor in row[9:]
                if successor
            )
        return cls(tasks, waits)

    def simulation(self, *, trace: bool) -> Simulation:
        """In microseconds."""
        first = min(task.start for task in self.tasks.values())
        last = max(task.end for task in self.tasks.values())
        path = [self.tasks[key] for key in self.longest_path if key in self.tasks]
        of_kind = {kind: [task for task in self.tasks.values() if task.kind == kind] for kind in _KINDS}
        timeline = tuple(
            (f"{task.kind}{task.core}", _microseconds(task.start), _microseconds(task.end), task.graph)
            for task in self.tasks.values()
        )
        return Simulation(
            window=_microseconds(last - first),
            start=_microseconds(first),
            chain=_microseconds(sum(task.end - task.start for task in path)),
            stages=len(path),
            tasks={kind: len(found) for kind, found in of_kind.items()},
            cores={kind: len({task.core for task in found}) for kind, found in of_kind.items()},
            busy={kind: _microseconds(sum(t.end - t.start for t in found)) for kind, found in of_kind.items()},
            timeline=timeline if trace else (),
        )

    @cached_property
    def longest_path(self) -> list[_Key]:
        """Tasks that wait for each other, with what the scheduler takes at least from one to the next."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.tasks)
        for before, after in self.waits:
            task = self.tasks.get(after)  # a hub, which only gathers edges, is no task
            length = 0.0 if task is None else task.end - task.start + ASCEND_910B.cycles_stage
            graph.add_edge(before, after, weight=length)
        for key in [key for key in self.tasks if graph.in_degree(key) == 0]:
            graph.add_edge("start", key, weight=self.tasks[key].end - self.tasks[key].start)
        return nx.dag_longest_path(graph)


def _microseconds(cycles: float) -> float:
    return cycles / CYCLES_PER_MICROSECOND
