"""The routed experts of a mixture, int8 rows and int4 weights that are scaled in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.chosen_experts import Layer, chosen_experts
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.grouped_mlp import take
from glmfuse.patterns.int4 import unpack_int4
from glmfuse.patterns.quant_grouped_mlp import CHOICE_DTYPES, CHOICES
from glmfuse.patterns.w4_linear import in_order

_DIMS = {
    **CHOICES,
    "x": "B S 2*G*M",
    "w_gate_up": "E 2*G*M F*N",
    "s_gate_up": "E G 2*F*N",
    "w_down": "E F*N G*M",
    "s_down": "E F 2*G*M",
}
_SIZES = (
    {"B": 2, "S": 3, "A": 5, "E": 7, "G": 3, "M": 5, "F": 7, "N": 11},
    {"B": 3, "S": 5, "A": 4, "E": 11, "G": 5, "M": 7, "F": 3, "N": 13},
)
_DTYPES = {**CHOICE_DTYPES, "w_gate_up": torch.uint8, "w_down": torch.uint8}


def _product(rows: Tensor, per_token: Tensor, layer: Layer, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """As `w4_linear` has it, by the expert of each row."""
    w, scale = layer
    groups = scale.shape[1]
    weights = unpack_int4(take(w, experts)).to(torch.int32).unflatten(1, (groups, -1))
    inputs = rows.to(torch.int32).unflatten(1, (groups, 1, -1))
    sums = torch.bmm(inputs.flatten(0, 1), weights.flatten(0, 1)).view(-1, groups, weights.shape[-1])
    y = in_order((sums.to(torch.float32) * take(scale, experts)).transpose(0, 1))
    return (y * per_token.unsqueeze(-1)).to(dtype)


_CASES: tuple[dict[str, int], ...] = ({}, {"G": 1, "F": 1}, {"G": 1}, {"F": 1})
"""One group of the inputs, of the width, or of both: no dimension that anything is transposed around."""


@pattern(dims=_DIMS, examples=_SIZES, cases=_CASES, dtypes=_DTYPES, holds=(torch.int8, torch.uint8))
def w4_grouped_mlp(
    x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, s_gate_up: Tensor, w_down: Tensor, s_down: Tensor
) -> Tensor:
    """The sum over a of weights[t, a] * down(silu(gate(x)) * up(x)) by expert ids[t, a], its weights int4.

    x, weights and ids as `quant_grouped_mlp` has them; w_gate_up [experts, hidden, width] uint8, two int4 in a byte
    as `unpack_int4` reads them and gate first, s_gate_up [experts, groups, 2 * width] fp32, w_down [experts, width,
    hidden / 2] uint8, s_down [experts, groups of the width, hidden] fp32 -> x's shape. Each layer is rounded to x's
    dtype as `w4_linear` is; the weighted sum is fp32, rounded once. Source: the W4A8_DYNAMIC experts of vllm-ascend
    182b75e.
    """
    return chosen_experts(x, weights, ids, (w_gate_up, s_gate_up), (w_down, s_down), dynamic_quantize, _product)


@w4_grouped_mlp.constraint
def _(w_gate_up: Tensor, w_down: Tensor) -> None:
    dtypes = w_gate_up.dtype, w_down.dtype
    require(dtypes == (torch.uint8, torch.uint8), "the weights must be uint8", f"{dtypes[0]}, {dtypes[1]}")
