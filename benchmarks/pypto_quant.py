"""Quantised PyPTO kernels beside PyPTO's own GLM-4.5 kernels, in one cost model, with their error at each point.

    python benchmarks/pypto_quant.py

prints the table and writes benchmarks/results/pypto_quant.json. GLM-4.5 over 8 devices, bf16. Nothing here runs on a
chip: times are PyPTO 0.2.0's cost model's, errors its interpreter's on a CPU.

A layer quantises its rows once: `quant_mlp` and `router_quant_mlp` are given the codes that the norm before them makes,
and are compared together with what that adds to the norm's own time, which PyPTO's kernels do not include either.
`swiglu_mlp` and `router_mlp` make the codes in their own launch, as PyPTO's do. Ratios are of tiles in half of L1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glmfuse.lowering.pypto import family_quant
from glmfuse.lowering.pypto.checking import distance
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.launch import interpret
from glmfuse.lowering.pypto.process import Mode
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.timing import BLIND, WHOLE_L1, Simulator, stages_floor
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from glmfuse.report.lines import entry_a_line

RESULTS = Path(__file__).parent / "results" / "pypto_quant.json"
SHAPE = "glm-4.5/tp8"
TOKENS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Compared:
    """A kernel of PyPTO's (models/glm_v4_5 at its release 0.2.0), and what is wanted of ours, as a part of its time.

    times: its windows in microseconds at TOKENS, measured once in this cost model with that release's wheel and
    unchanged sources; no run of this script measures them again.
    """

    name: str
    times: tuple[float, ...]
    wanted: float


_FRONT = Compared("attention_pre_quant", (74.9, 74.9, 97.9), 0.5)
_SHARED = Compared("ffn_shared_expert_quant", (30.7, 44.2, 47.7), 0.7)
_FUSED = Compared("moe_fusion", (32.5, 42.7, 45.8), 0.7)

COMPARED: Mapping[str, Compared | None] = {
    "norm_qkv_rope_w8a8": _FRONT,
    "norm_qkv_rope_w8a8_dynamic": None,
    "swiglu_mlp_w8a8_dynamic": _SHARED,
    "quant_mlp_w8a8_dynamic": _SHARED,
    "router_mlp_w8a8_dynamic": _FUSED,
    "router_quant_mlp_w8a8_dynamic": _FUSED,
    "swiglu_mlp_w4a8_dynamic": None,
    "quant_mlp_w4a8_dynamic": None,
}
_TOGETHER = {"norm": ("q", "k", "v"), "swiglu": ("gate", "up"), "quant": ("gate", "up"), "router": ("gate", "up")}


def main() -> None:
    simulator = Simulator()
    points = [(name, merged, tokens) for name in COMPARED for merged in (False, True) for tokens in TOKENS]
    rows = [row(simulator, *point) for point in tqdm(points)]
    RESULTS.write_text(entry_a_line({"note": BLIND, "shape": SHAPE, "rows": rows}) + "\n")
    print(table(rows))


def row(simulator: Simulator, name: str, merged: bool, tokens: int) -> dict[str, Any]:
    """One kernel at one number of tokens; merged: projections of one input are one matrix, as in PyPTO's kernels.

    A kernel that is given codes has more time beside it: what it takes the norm before it to make them.
    """
    values = drawn(name, tokens)
    values = family_quant.merged(values, _TOGETHER[name.partition("_")[0]]) if merged else values
    half, whole = (KERNELS[name].launch(chip, **values) for chip in (ASCEND_910B, WHOLE_L1))
    beside = quantising(simulator, tokens) if "per_token" in values else 0.0
    theirs = COMPARED[name]
    window = round(simulator.simulation(half).window, 1)
    return {
        "kernel": name,
        "merged": merged,
        "tokens": tokens,
        "window": window,
        "beside": beside,
        "whole_l1": round(simulator.simulation(whole).window, 1),
        "theirs": None if theirs is None else theirs.times[TOKENS.index(tokens)],
        "ratio": None if theirs is None else round((window + beside) / theirs.times[TOKENS.index(tokens)], 3),
        "wanted": None if theirs is None else theirs.wanted,
        "stages": round(stages_floor(ASCEND_910B, simulator.simulation(half)), 1),
        "error": distance(name, interpret(half, Mode.COMPILE), values),
    }


def drawn(name: str, tokens: int) -> dict[str, Any]:
    """Arguments of a kernel at the shape that is compared."""
    return arguments(name, geometry(SHAPE), tokens, torch.bfloat16, seed=tokens)


def quantising(simulator: Simulator, tokens: int) -> float:
    """What a norm with a residual takes longer when it quantises, too."""
    plain, coded = (
        simulator.simulation(KERNELS[name].launch(ASCEND_910B, **drawn(name, tokens))).window
        for name in ("add_rms_norm", "norm_dynamic_quantize")
    )
    return round(coded - plain, 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    titles = (
        "kernel",
        "projections",
        "tokens",
        "us",
        "in the norm",
        "whole L1",
        "stages",
        "PyPTO's own",
        "ratio",
        "wanted",
    )
    lines = [f"| {' | '.join((*titles, 'relative L2'))} |", "|---" * (len(titles) + 1) + "|"]
    for found in rows:
        assert found["error"] <= KERNEL_RELATIVE_L2[torch.bfloat16], found
        wanted = "" if found["wanted"] is None else f"{found['wanted']} {verdict(found)}"
        cells = (
            f"`{found['kernel']}`",
            "merged" if found["merged"] else "separate",
            found["tokens"],
            found["window"],
            f"+{found['beside']}" if found["beside"] else "",
            found["whole_l1"],
            found["stages"],
            found["theirs"] or "",
            found["ratio"] or "",
            wanted,
            f"{found['error']:.1e}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def verdict(found: dict[str, Any]) -> str:
    """Whether the ratio is what is wanted."""
    return "met" if found["ratio"] < found["wanted"] else "missed"


if __name__ == "__main__":
    main()
