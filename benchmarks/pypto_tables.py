"""docs/pypto_times.md from benchmarks/results/pypto_times.json: what is read by people, of what planning reads.

python benchmarks/pypto_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HEAD = """# Simulated times of the PyPTO kernels

Written by `benchmarks/pypto_tables.py` from `benchmarks/results/pypto_times.json`, which `benchmarks/pypto_times.py`
makes. Microseconds in PyPTO 0.2.0's cost model, bf16; **nothing here was measured on a chip**.

What the cost model does not know, and what no figure here says therefore: the cost of a launch on host and stream;
bandwidth, which all cores have to themselves; what vector arithmetic really costs (default tables); whether weights
are in the L2 cache. So fewer, larger tasks with idle cores win here and may not on a chip. Tiles minimise the model's
copies, releases and waves, in half of L1, which leaves room for double buffering; "whole" lets them take all of it.
Attention is over 1024 cached tokens; its tokens are sequences.

* half, whole: first task's start to last one's end, tiles up to half and to the whole of L1. start: with the device's
  start (half).
* stages: the floor of this cost model for these tasks, the longest path of tasks that wait for each other and 1.93 us
  from one to the next. What is above it is tasks that wait to be handed out (390 cycles each, one after another, by
  schedulers that look every 2880 cycles).
* bytes: inputs and outputs at 1.6 TB/s.
* apart: the kernels that it replaces, one after another, without launches, and how many these are. A part is a
  smaller pattern's kernel or one operator's; what no activation goes into (the cast of a weight) counts as made once.
* gain: microseconds saved at 2 us a launch, the default of `launch_us`.
"""


def main() -> None:
    data = json.loads((ROOT / "benchmarks" / "results" / "pypto_times.json").read_text())
    parts = [HEAD]
    for shape in dict.fromkeys(row["shape"] for row in data["rows"]):
        parts.append(f"## {shape}\n")
        parts.append("| kernel | tokens | half | whole | start | stages | bytes | apart | kernels | gain |")
        parts.append("|---|---|---|---|---|---|---|---|---|---|")
        parts.extend(line(row) for row in data["rows"] if row["shape"] == shape)
        parts.append("")
    if data["refused"]:
        parts.append("## Refused\n")
        parts.extend(f"* {point}: {reason}" for point, reason in data["refused"].items())
        parts.append("")
    (ROOT / "docs" / "pypto_times.md").write_text("\n".join(parts))


def line(row: dict[str, Any]) -> str:
    apart = sum(window for _, window in row["apart"])
    count = len(row["apart"])
    gain = f"{apart - row['window'] + 2 * (count - 1):.1f}" if count else ""
    return (
        f"| `{row['kernel']}` | {row['tokens']} | {row['window']} | {row['whole_l1']} | {row['with_start']} | "
        f"{row['stages_floor']} | {row['bytes_floor']} | {f'{apart:.1f}' if count else ''} | {count or ''} | {gain} |"
    )


if __name__ == "__main__":
    main()
