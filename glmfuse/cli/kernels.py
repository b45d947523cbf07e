"""`glmfuse kernels list | check | time`: PyPTO kernels without an NPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmfuse.cli.quiet import Steps
from glmfuse.errors import OptionError, UnavailableError

if TYPE_CHECKING:
    from glmfuse.lowering.pypto.timing import Timing


def list_kernels() -> int:
    """Print every pattern that has a kernel, and its first line."""
    from glmfuse.lowering.pypto.registry import KERNELS
    from glmfuse.patterns import PATTERNS

    for pattern in PATTERNS:
        if pattern.name in KERNELS:
            summary = (pattern.function.__doc__ or "").strip().splitlines()[0]
            print(f"{pattern.name:<16}{summary}")
    return 0


def check_kernels(name: str | None, shape: str, tokens: Sequence[int]) -> int:
    """Compile and interpret kernels against their pattern functions; 1 when one disagrees."""
    from glmfuse.lowering.pypto.checking import check

    points = list(_points(name, shape, tokens))
    failed = 0
    print(f"{'kernel':<16}{'shape':<14}{'tokens':>7}{'rel L2':>10}{'allowed':>10}")
    with Steps(len(points)) as step:
        for kernel, count in points:
            step(f"{kernel} at {count} tokens")
            found = check(kernel, shape, count)
            failed += not found.passed
            verdict = "" if found.passed else f"  FAILED {found.failure}"
            print(f"{kernel:<16}{shape:<14}{count:>7}{found.error:>10.1e}{found.allowed:>10.0e}{verdict}")
    return 1 if failed else 0


def time_kernels(name: str | None, shape: str, tokens: Sequence[int], *, as_json: bool, trace: str | None) -> int:
    """Print each kernel's simulated time; with `trace`, write the tasks of the last one for Perfetto."""
    from glmfuse.lowering.pypto.timing import BLIND, Simulator

    points = list(_points(name, shape, tokens))
    simulator = Simulator()
    rows = []
    with Steps(len(points)) as step:
        for kernel, count in points:
            step(f"{kernel} at {count} tokens")
            rows.append(simulator.time(kernel, shape, count, trace=trace is not None))
    if trace is not None:
        Path(trace).write_text(json.dumps(_perfetto(rows[-1].simulation.timeline)))
    if as_json:
        print(json.dumps({"note": BLIND, "rows": [asdict(row) for row in rows]}, indent=1))
        return 0
    print(f"{'':<23}{'AICore us, L1':>14}{'with':>8}{'tasks/cores':>18}{'floors us':>15}{'apart':>20}")
    print(
        f"{'kernel':<16}{'tokens':>7}{'half':>7}{'whole':>7}{'start':>8}{'AIC':>9}{'AIV':>9}"
        f"{'stages':>8}{'bytes':>7}{'us':>8}{'kernels':>8}{'x':>5}"
    )
    for row in rows:
        print(_timed(row))
    print(f"{shape}: {BLIND}")
    print("floors: the longest path of tasks with the least wait between stages; inputs and outputs at full bandwidth")
    print("apart: the kernels that it replaces, one after another, without launches; x: how many times as long")
    return 0


def _timed(row: Timing) -> str:
    found = row.simulation
    cube, vector = (f"{found.tasks[kind]}/{found.cores[kind]}" for kind in ("AIC", "AIV"))
    apart = f"{row.sum_apart:>8.1f}{len(row.apart):>8}{row.sum_apart / found.window:>5.1f}" if row.apart else ""
    return (
        f"{row.pattern:<16}{row.tokens:>7}{found.window:>7.1f}{row.whole_l1:>7.1f}{found.window + found.start:>8.1f}"
        f"{cube:>9}{vector:>9}{row.stages_floor:>8.1f}{row.bytes_floor:>7.1f}{apart}"
    )


def _points(name: str | None, shape: str, tokens: Sequence[int]) -> Iterator[tuple[str, int]]:
    from glmfuse.lowering.pypto.family import geometry
    from glmfuse.lowering.pypto.registry import KERNELS
    from glmfuse.lowering.pypto.target import unavailable

    if (reason := unavailable()) is not None:
        raise UnavailableError("target", "pypto", reason)
    if name is not None and name not in KERNELS:
        raise OptionError.unknown("kernel", [name], KERNELS)
    geometry(shape)
    return iter(product([name] if name is not None else list(KERNELS), tokens))


def _perfetto(timeline: Sequence[tuple[str, float, float, int]]) -> dict[str, Any]:
    """Chrome's trace events: one thread for each core, microseconds."""
    return {
        "traceEvents": [
            {"name": f"subgraph {graph}", "ph": "X", "pid": 0, "tid": core, "ts": start, "dur": end - start}
            for core, start, end, graph in timeline
        ]
    }
