"""A decode step with a long static cache: eager, Inductor and glmfuse, side by side and in turn.

A GLM-4.5 of middle size (hidden 1024, 4 layers, 16 experts of which 4 are active, bf16), random weights, one
sequence; on a CPU with one thread. Prints medians, their ratios and the peak of allocated memory, and writes
them to benchmarks/results/decode_<device>.json. With a GPU, a prefill of 2048 tokens too, and each with CUDA
graphs on and off; where there is none, `--device cuda` says so and ends. `from_eager` is the relative L2
distance of the logits: with random weights a router's choice flips on the last bit of bf16.

    python benchmarks/decode.py [--lengths 512 4096 16384] [--rounds 30] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glmfuse import huggingface
from glmfuse.cli.quiet import quiet
from glmfuse.lowering.verify import difference
from glmfuse.report.lines import entry_a_line

RESULTS = Path(__file__).parent / "results"
SIZES = {
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 512,
    "intermediate_size": 2816,
    "vocab_size": 8192,
    "max_position_embeddings": 32768,
}
PREFILL = 2048


@dataclass
class Way:
    """One way to run the model, with a cache of its own."""

    name: str
    model: Callable[..., Any]
    cache: Any
    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of one call; the cache grows."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(tokens, **huggingface.call_with(self.model, self.cache)).logits
        return logits


def ways(model: Any, device: str, length: int) -> list[Way]:
    """Eager, Inductor and glmfuse; on a GPU the compiled ones with CUDA graphs as well."""

    def way(name: str, run: Callable[..., Any]) -> Way:
        return Way(name, run, huggingface.static_cache(model, 1, length))

    made = [way("eager", model)]
    for graphs in (False, True) if device == "cuda" else (False,):
        suffix = " with CUDA graphs" if graphs else ""
        options: dict[str, Any] = {"triton.cudagraphs": True} if graphs else {}
        ours = {"engine": "inductor", "engine_options": options, "frozen": True}
        made.append(way(f"inductor{suffix}", torch.compile(model, options=options)))
        made.append(way(f"glmfuse{suffix}", torch.compile(model, backend="glmfuse", options=ours)))
    return made


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes allocated at once beyond what was there before, at the most."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    total = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most


def measure(model: Any, device: str, length: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians of interleaved rounds; the first call of each way compiles."""
    torch._dynamo.reset()
    ids = huggingface.random_tokens(model, 1, tokens)
    runners = ways(model, device, length)
    logits = {}
    for way in runners:
        with quiet():
            logits[way.name] = way.step(ids)
            way.step(ids)
    for _ in range(rounds):
        for way in runners:
            _wait(device)
            start = time.perf_counter()
            way.step(ids)
            _wait(device)
            way.seconds.append(time.perf_counter() - start)
    for way in runners:
        way.peak = peak_memory(partial(way.step, ids), device)
    medians = {way.name: statistics.median(way.seconds) * 1e3 for way in runners}
    row: dict[str, Any] = {"cache": length, "tokens": tokens, "ms": medians}
    row["peak_mb"] = {way.name: round(way.peak / 1e6, 2) for way in runners}
    row["from_eager"] = {name: difference(found, logits["eager"])[1] for name, found in logits.items()}
    row["eager_over_glmfuse"] = round(medians["eager"] / medians["glmfuse"], 3)
    row["inductor_over_glmfuse"] = round(medians["inductor"] / medians["glmfuse"], 3)
    return row


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no GPU")
        return
    torch.set_num_threads(1)
    config = huggingface.make_config(huggingface.TINY, **SIZES)
    model = huggingface.build(config, torch.bfloat16).to(given.device)
    shapes = [(length, 1) for length in given.lengths]
    shapes += [(2 * PREFILL, PREFILL)] if given.device == "cuda" else []
    rows = [
        measure(model, given.device, length, tokens, given.rounds)
        for length, tokens in tqdm(shapes, unit="shape", disable=None)
    ]
    for row in rows:
        print(_show(row))
    result = {"torch": torch.__version__, "device": given.device, "rounds": given.rounds, "rows": rows}
    RESULTS.joinpath(f"decode_{given.device}.json").write_text(entry_a_line(result) + "\n")


def _show(row: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {ms:.1f} ms ({row['peak_mb'][name]} MB)" for name, ms in row["ms"].items())
    ratios = f"glmfuse is {row['inductor_over_glmfuse']}x inductor, {row['eager_over_glmfuse']}x eager"
    return f"cache {row['cache']}, {row['tokens']} tokens: {times}; {ratios}"


if __name__ == "__main__":
    main()
