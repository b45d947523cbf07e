"""The routed experts of a mixture in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.chosen_experts import Layer, chosen_experts, products
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.grouped_mlp import take

SIZES = (
    {"B": 2, "S": 3, "A": 5, "E": 7, "H": 22, "I": 13},
    {"B": 3, "S": 5, "A": 4, "E": 11, "H": 26, "I": 17},
)
"""Small: each choice has its expert's weights."""

CHOICES = {"x": "B S H", "weights": "B*S A", "ids": "B*S A"}
CHOICE_DTYPES = {"weights": torch.float32, "ids": torch.int64, "s_gate_up": torch.float32, "s_down": torch.float32}

_DIMS = {**CHOICES, "w_gate_up": "E H 2*I", "s_gate_up": "E 2*I", "w_down": "E I H", "s_down": "E H"}
_DTYPES = {**CHOICE_DTYPES, "w_gate_up": torch.int8, "w_down": torch.int8}


def _product(rows: Tensor, per_token: Tensor, layer: Layer, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """As `quant_linear` has it, by the expert of each row."""
    w, scale = layer
    total = products(rows, w, experts, torch.int32).to(torch.float32)
    return (total * take(scale, experts) * per_token.unsqueeze(-1)).to(dtype)


@pattern(dims=_DIMS, examples=SIZES, dtypes=_DTYPES, holds=(torch.int8,))
def quant_grouped_mlp(
    x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, s_gate_up: Tensor, w_down: Tensor, s_down: Tensor
) -> Tensor:
    """The sum over a of weights[t, a] * down(silu(gate(x)) * up(x)) by expert ids[t, a], its layers in int8.

    x [batch, tokens, hidden] bf16 or fp16, weights [batch * tokens, active] fp32, ids alike int64 below experts,
    w_gate_up [experts, hidden, 2 * width] int8 gate first, s_gate_up [experts, 2 * width] fp32, w_down [experts,
    width, hidden] int8, s_down [experts, hidden] fp32 -> x's shape. Rows are quantised once for all their experts,
    and what an expert activates once more; each layer is rounded to x's dtype as `quant_linear` is. The weighted sum
    is fp32, rounded once. Source: the W8A8_DYNAMIC experts of vllm-ascend 182b75e.
    """
    return chosen_experts(x, weights, ids, (w_gate_up, s_gate_up), (w_down, s_down), dynamic_quantize, _product)


@quant_grouped_mlp.constraint
def _(w_gate_up: Tensor, w_down: Tensor) -> None:
    dtypes = w_gate_up.dtype, w_down.dtype
    require(dtypes == (torch.int8, torch.int8), "the weights must be int8", f"{dtypes[0]}, {dtypes[1]}")
