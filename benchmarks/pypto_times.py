"""Simulated times of every PyPTO kernel, beside the kernels that it replaces: the table that planning reads.

    python benchmarks/pypto_times.py

writes glmfuse/lowering/pypto/times.json and benchmarks/results/pypto_times.json. Nothing here runs on a chip.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto import gain
from glmfuse.lowering.pypto.family import geometry
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.timing import BLIND, Simulator, Timing
from glmfuse.report.lines import entry_a_line

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pypto_times.json"
SHAPES = [f"{model}/tp{devices}" for model in ("glm-4.5", "glm-4.5-air") for devices in (8, 16)]
TOKENS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS), help="time these anew and keep the other rows")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": [], "refused": {}}
    rows = [row for row in kept["rows"] if row["kernel"] not in arguments.kernels and is_wanted(row)]
    refused = {point: why for point, why in kept["refused"].items() if point.split()[0] not in arguments.kernels}
    simulator = Simulator()
    points = [point for point in product(arguments.kernels, SHAPES, TOKENS) if is_timed(*point)]
    for kernel, shape, tokens in tqdm(points):
        try:
            rows.append(detail(simulator.time(kernel, shape, tokens)))
        except KernelError as error:
            refused[f"{kernel} {shape} {tokens}"] = error.reason.splitlines()[0]
        save(rows, refused)


def save(rows: list[dict[str, Any]], refused: dict[str, str]) -> None:
    """Both files, in the order of the registry."""
    rows = sorted(rows, key=lambda row: list(KERNELS).index(row["kernel"]))
    table: dict[str, Any] = {}
    for row in rows:
        if row["apart"]:
            apart = round(sum(window for _, window in row["apart"]), 1)
            entry = table.setdefault(f"{row['kernel']} {row['shape']}", {})
            entry[row["tokens"]] = [row["window"], apart, len(row["apart"])]
    note = f"microseconds; {BLIND}. For each number of tokens: fused, the sum of the kernels apart, how many they are"
    table_file = ROOT / "glmfuse" / "lowering" / "pypto" / gain.TABLE
    table_file.write_text(entry_a_line({"note": note, "times": table}) + "\n")
    RESULTS.write_text(entry_a_line({"note": BLIND, "rows": rows, "refused": refused}) + "\n")


def is_wanted(row: dict[str, Any]) -> bool:
    """Whether a row that was kept belongs to the table as it is asked for now."""
    return row["shape"] in SHAPES and row["tokens"] in TOKENS


def is_timed(kernel: str, shape: str, tokens: int) -> bool:
    """Attention has a round for each sequence and kv head: the cost model takes hours for a thousand of them."""
    at = geometry(shape)
    return "attention" not in kernel or tokens * at.kv_heads <= 32


def detail(found: Timing) -> dict[str, Any]:
    """A row with all that was found."""
    simulation = found.simulation
    return {
        "kernel": found.pattern,
        "shape": found.shape,
        "tokens": found.tokens,
        "window": round(simulation.window, 1),
        "with_start": round(simulation.window + simulation.start, 1),
        "whole_l1": round(found.whole_l1, 1),
        "tasks": dict(simulation.tasks),
        "cores": dict(simulation.cores),
        "stages": simulation.stages,
        "stages_floor": round(found.stages_floor, 1),
        "bytes_floor": round(found.bytes_floor, 1),
        "apart": [[name, round(window, 1)] for name, window in found.apart],
    }


if __name__ == "__main__":
    main()
