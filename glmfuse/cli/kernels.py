"""`glmfuse kernels list | check | time`: PyPTO kernels without an NPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from glmfuse.cli.quiet import Steps
from glmfuse.errors import OptionError, UnavailableError

_BLIND = (
    "simulated by PyPTO's cost model for 24 cube and 48 vector cores, not measured on a chip: it knows no launch "
    "cost, no memory bandwidth shared by cores, and charges vector arithmetic by default tables"
)


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
    from glmfuse.lowering.pypto.checking import simulate

    points = list(_points(name, shape, tokens))
    rows = []
    with Steps(len(points)) as step:
        for kernel, count in points:
            step(f"{kernel} at {count} tokens")
            rows.append(simulate(kernel, shape, count, trace=trace is not None))
    if trace is not None:
        Path(trace).write_text(json.dumps(_perfetto(rows[-1].simulation.timeline)))
    if as_json:
        print(json.dumps({"note": _BLIND, "rows": [asdict(row) for row in rows]}, indent=1))
        return 0
    heads = f"{'AICore us':>11}{'with start':>12}{'AIC tasks/cores':>17}{'AIV':>9}{'floor us':>10}"
    print(f"{'kernel':<16}{'tokens':>7}{heads}")
    for row in rows:
        found = row.simulation
        cube, vector = (f"{found.tasks[kind]}/{found.cores[kind]}" for kind in ("AIC", "AIV"))
        total = found.window + found.start
        print(
            f"{row.pattern:<16}{row.tokens:>7}{found.window:>11.1f}{total:>12.1f}{cube:>17}{vector:>9}{row.floor:>10.1f}"
        )
    print(f"{shape}: {_BLIND}")
    return 0


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
