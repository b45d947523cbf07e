"""The routed experts of a mixture in 8-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.chosen_experts import Layer, chosen_experts, products
from glmfuse.patterns.fp8_linear import FP8
from glmfuse.patterns.fp8_quantize import fp8_quantize
from glmfuse.patterns.grouped_mlp import take
from glmfuse.patterns.quant_grouped_mlp import CHOICE_DTYPES, CHOICES, SIZES

_DIMS = {**CHOICES, "w_gate_up": "E H 2*I", "s_gate_up": "E 2*I", "w_down": "E I H", "s_down": "E H"}
_DTYPES = {**CHOICE_DTYPES, "w_gate_up": FP8, "w_down": FP8}


def _product(rows: Tensor, per_token: Tensor, layer: Layer, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """As `fp8_linear` has it, by the expert of each row."""
    w, scale = layer
    total = products(rows, w, experts, torch.float32)
    return (total * take(scale, experts) * per_token.unsqueeze(-1)).to(dtype)


@pattern(dims=_DIMS, examples=SIZES, dtypes=_DTYPES, holds=(FP8,))
def fp8_grouped_mlp(
    x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, s_gate_up: Tensor, w_down: Tensor, s_down: Tensor
) -> Tensor:
    """The sum over a of weights[t, a] * down(silu(gate(x)) * up(x)) by expert ids[t, a], its layers in float8_e4m3fn.

    Arguments as `quant_grouped_mlp` has them, w_gate_up and w_down float8_e4m3fn -> x's shape. Each layer is rounded
    to x's dtype as `fp8_linear` is; the weighted sum is fp32, rounded once. Source: `quant_grouped_mlp`, by the
    per-token FP8 scheme of compressed-tensors 0.20.
    """
    return chosen_experts(x, weights, ids, (w_gate_up, s_gate_up), (w_down, s_down), fp8_quantize, _product)


@fp8_grouped_mlp.constraint
def _(w_gate_up: Tensor, w_down: Tensor) -> None:
    dtypes = w_gate_up.dtype, w_down.dtype
    require(dtypes == (FP8, FP8), "the weights must be float8_e4m3fn", f"{dtypes[0]}, {dtypes[1]}")
