"""`glmfuse kernels list | check | time`: PyPTO kernels without an NPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmfuse.cli.quiet import Steps
from glmfuse.errors import KernelError, OptionError, UnavailableError
from glmfuse.report.lines import entry_a_line

if TYPE_CHECKING:
    from glmfuse.lowering.pypto.checking import Check
    from glmfuse.lowering.pypto.timing import Timing

Point = tuple[str, str, int]
"""A kernel, a shape and a number of tokens."""

_CHECKED = "relative L2 error against the pattern function, in PyPTO's interpreter on a CPU; nothing ran on a chip"


def list_kernels() -> int:
    """Print every pattern that has a kernel, and its first line."""
    from glmfuse.lowering.pypto.registry import KERNELS
    from glmfuse.patterns import PATTERNS

    width = _width(KERNELS)
    for pattern in PATTERNS:
        if pattern.name in KERNELS:
            summary = (pattern.function.__doc__ or "").strip().splitlines()[0]
            print(f"{pattern.name:<{width}}{summary}")
    return 0


def points(name: str | None, shapes: Sequence[str], tokens: Sequence[int]) -> list[Point]:
    """Every kernel, shape and number of tokens that was asked for; OptionError or UnavailableError."""
    from glmfuse.lowering.pypto.family import geometry
    from glmfuse.lowering.pypto.registry import KERNELS
    from glmfuse.lowering.pypto.target import unavailable

    if (reason := unavailable()) is not None:
        raise UnavailableError("target", "pypto", reason)
    if name is not None and name not in KERNELS:
        raise OptionError.unknown("kernel", [name], KERNELS)
    for shape in shapes:
        geometry(shape)
    return list(product([name] if name is not None else list(KERNELS), shapes, tokens))


def check_kernels(points: Sequence[Point], *, passes: bool, as_json: bool) -> int:
    """Compile and interpret kernels against their pattern functions; 1 when one disagrees."""
    from glmfuse.lowering.pypto.checking import check

    rows: list[Check] = []
    width = _width(kernel for kernel, _, _ in points)
    if not as_json:
        print(f"{'kernel':<{width}}{'shape':<18}{'tokens':>7}{'rel L2':>10}{'allowed':>10}")
    for kernel, shape, count in _steps(points):
        found = check(kernel, shape, count, passes=passes)
        rows.append(found)
        if not as_json:
            print(f"{kernel:<{width}}{shape:<18}{count:>7}{found.error:>10.1e}{found.allowed:>10.1e}{_verdict(found)}")
    failed = [row for row in rows if not row.passed and not row.refused]
    if as_json:
        print(entry_a_line({"note": _CHECKED, "failed": len(failed), "rows": [asdict(row) for row in rows]}))
    return 1 if failed else 0


def _width(names: Iterable[str]) -> int:
    """Of the first column: the longest name, and two spaces."""
    return 2 + max(map(len, (*names, "kernel")))


def _verdict(found: Check) -> str:
    if found.refused:
        return f"  refused: {found.refused}"
    return "" if found.passed else f"  FAILED {found.failure}"


def time_kernels(points: Sequence[Point], *, as_json: bool, trace: str | None) -> int:
    """Print each kernel's simulated time; with `trace`, write the tasks of the last one for Perfetto."""
    from glmfuse.lowering.pypto.timing import BLIND, Simulator

    simulator = Simulator()
    rows, refused = [], []
    for kernel, shape, count in _steps(points):
        try:
            rows.append(simulator.time(kernel, shape, count, trace=trace is not None))
        except KernelError as error:
            refused.append(f"{kernel} {shape} {count}: {error.reason.splitlines()[0]}")
    if trace is not None and rows:
        Path(trace).write_text(json.dumps(_perfetto(rows[-1].simulation.timeline)))
    if as_json:
        print(entry_a_line({"note": BLIND, "rows": [asdict(row) for row in rows], "refused": refused}))
        return 0
    width = _width(row.pattern for row in rows)
    print(f"{'':<{width + 25}}{'AICore us, L1':>14}{'with':>8}{'tasks/cores':>18}{'floors us':>15}{'apart':>20}")
    print(
        f"{'kernel':<{width}}{'shape':<18}{'tokens':>7}{'half':>7}{'whole':>7}{'start':>8}{'AIC':>9}{'AIV':>9}"
        f"{'stages':>8}{'bytes':>7}{'us':>8}{'kernels':>8}{'x':>5}"
    )
    for row in rows:
        print(_timed(row, width))
    for reason in refused:
        print(f"refused: {reason}")
    print(BLIND)
    print("floors: the longest path of tasks with the least wait between stages; inputs and outputs at full bandwidth")
    print("apart: the kernels that it replaces, one after another, without launches; x: how many times as long")
    return 0


def _timed(row: Timing, width: int) -> str:
    found = row.simulation
    cube, vector = (f"{found.tasks[kind]}/{found.cores[kind]}" for kind in ("AIC", "AIV"))
    apart = f"{row.sum_apart:>8.1f}{len(row.apart):>8}{row.sum_apart / found.window:>5.1f}" if row.apart else ""
    return (
        f"{row.pattern:<{width}}{row.shape:<18}{row.tokens:>7}"
        f"{found.window:>7.1f}{row.whole_l1:>7.1f}{found.window + found.start:>8.1f}"
        f"{cube:>9}{vector:>9}{row.stages_floor:>8.1f}{row.bytes_floor:>7.1f}{apart}"
    )


def _steps(points: Sequence[Point]) -> Iterator[Point]:
    """The points, with a bar of the progress."""
    with Steps(len(points)) as step:
        for kernel, shape, count in points:
            step(f"{kernel} at {shape}, {count} tokens")
            yield kernel, shape, count


def _perfetto(timeline: Sequence[tuple[str, float, float, int]]) -> dict[str, Any]:
    """Chrome's trace events: one thread for each core, microseconds."""
    return {
        "traceEvents": [
            {"name": f"subgraph {graph}", "ph": "X", "pid": 0, "tid": core, "ts": start, "dur": end - start}
            for core, start, end, graph in timeline
        ]
    }
