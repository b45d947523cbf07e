"""Every PyPTO kernel against its pattern function, over the shapes and numbers of tokens that are promised.

    python benchmarks/pypto_check.py

writes benchmarks/results/pypto_check.json as it goes, and goes on where it was ended; `--anew` begins again. Exits
with 1 when a kernel does not compile through all passes or disagrees. PyPTO's interpreter on a CPU: nothing here
runs on a chip.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glmfuse.lowering.pypto.checking import check
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.report.lines import entry_a_line

RESULTS = Path(__file__).parent / "results" / "pypto_check.json"
SHAPES = ("tiny", "glm-4.5/tp8", "glm-4.5/tp16", "glm-4.5-air/tp8")
TOKENS = (1, 2, 5, 8, 31, 32, 33, 512)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anew", action="store_true", help="forget the results that there are")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if RESULTS.exists() and not arguments.anew:
        rows = json.loads(RESULTS.read_text())["rows"]
    done = {(row["pattern"], row["shape"], row["tokens"]) for row in rows}
    points = sorted(product(KERNELS, SHAPES, TOKENS), key=lambda point: (point[2] == 512, "attention" in point[0]))
    for kernel, shape, tokens in tqdm([point for point in points if point not in done]):
        found = check(kernel, shape, tokens, seed=tokens)
        rows.append({**asdict(found), "passed": found.passed})
        save(rows)
    failed = [row for row in rows if not row["passed"] and not row["refused"]]
    print(f"{len(rows)} points, {len(failed)} failed")
    return 1 if failed else 0


def save(rows: list[dict[str, Any]]) -> None:
    note = "relative L2 error of the worst output, bf16, in PyPTO's interpreter on a CPU; nothing ran on a chip"
    RESULTS.write_text(entry_a_line({"note": note, "rows": rows}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
