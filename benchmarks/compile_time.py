"""How the time of glmfuse's own stages grows with depth, and its share of Dynamo plus AOT.

Compiles a decode step of a tiny GLM-4.5 of 24 and of 96 layers, in one process, side by side and in turn;
prints the medians and writes them to benchmarks/results/compile_time.json.

    python benchmarks/compile_time.py [--layers 24 96] [--rounds 3]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glmfuse import Report, huggingface
from glmfuse.cli.quiet import quiet

RESULTS = Path(__file__).parent / "results" / "compile_time.json"


def compile_once(layers: int) -> dict[str, Any]:
    config = huggingface.make_config(huggingface.TINY, num_hidden_layers=layers)
    model = huggingface.build(config, torch.bfloat16)
    cache = huggingface.static_cache(model, 2, 32)
    token = huggingface.random_tokens(model, 2, 1)
    report = Report()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="glmfuse", options={"engine": "eager", "report": report})
    start = time.perf_counter()
    compiled(token, **huggingface.call_with(model, cache))
    total = time.perf_counter() - start
    torch._dynamo.reset()
    plain: Any = torch.compile(model, backend="aot_eager")
    start = time.perf_counter()
    plain(token, **huggingface.call_with(model, huggingface.static_cache(model, 2, 32)))
    rest = time.perf_counter() - start
    seconds = copy.copy(report.graphs[0].seconds)
    seconds.pop("engine")
    own = sum(seconds.values())
    nodes = report.graphs[0].bodies[0].nodes_captured
    return {"nodes": nodes, "stages": seconds, "own": own, "total": total, "dynamo_and_aot": rest}


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    stages = {name: statistics.median(run["stages"][name] for run in runs) for name in runs[0]["stages"]}
    other = {name: statistics.median(run[name] for run in runs) for name in ("own", "dynamo_and_aot", "total")}
    return {"nodes": runs[0]["nodes"], **other, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[24, 96])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    runs: dict[int, list[dict[str, Any]]] = {layers: [] for layers in arguments.layers}
    with quiet(), torch.no_grad():
        compile_once(2)  # patterns and kinds of sites are traced once in a process
        for layers in tqdm([*arguments.layers] * arguments.rounds, desc="compiling"):
            runs[layers].append(compile_once(layers))
            gc.collect()
    medians = {layers: median(found) for layers, found in runs.items()}
    print(f"{'layers':>7}{'nodes':>8}{'glmfuse s':>11}{'Dynamo+AOT s':>14}{'share':>8}  stages")
    for layers, row in medians.items():
        stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items())
        share = row["own"] / row["dynamo_and_aot"]
        print(f"{layers:>7}{row['nodes']:>8}{row['own']:>11.2f}{row['dynamo_and_aot']:>14.1f}{share:>8.1%}  {stages}")
    first, last = min(medians), max(medians)
    growth = medians[last]["own"] / medians[first]["own"] / (last / first)
    print(f"growth from {first} to {last} layers: {growth:.2f} times linear")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"growth_over_linear": growth, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
