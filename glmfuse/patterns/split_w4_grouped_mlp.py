"""The routed experts of a mixture, int8 rows and int4 weights whose rows are multiplied in two halves."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.chosen_experts import Layer, chosen_experts
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.grouped_mlp import take
from glmfuse.patterns.int4 import unpack_words
from glmfuse.patterns.quant_grouped_mlp import CHOICES
from glmfuse.patterns.split_int4 import fp32_of, halves, joined, leaving_the_cube
from glmfuse.patterns.split_w4_linear import held_as_words
from glmfuse.patterns.w4_linear import in_order

_DIMS = {
    **CHOICES,
    "x": "B S 8*G*M",
    "w_gate_up": "E 8*G*M F*N",
    "s_gate_up": "E G 8*F*N",
    "a_gate_up": "E 8*F*N",
    "w_down": "E 4*F*N G*M",
    "s_down": "E F 8*G*M",
    "a_down": "E 8*G*M",
}
_SIZES = (
    {"B": 2, "S": 3, "A": 5, "E": 7, "G": 3, "M": 2, "F": 2, "N": 3},
    {"B": 3, "S": 5, "A": 4, "E": 11, "G": 5, "M": 3, "F": 3, "N": 5},
)
_CASES: tuple[dict[str, int], ...] = ({}, {"G": 1, "F": 1}, {"G": 1}, {"F": 1})
"""One group of the inputs, of the width, or of both: no dimension that anything is transposed around."""

_DTYPES = {
    "weights": torch.float32,
    "ids": torch.int64,
    **{f"{kind}_{name}": dtype for name in ("gate_up", "down")
       for kind, dtype in (("w", torch.int32), ("s", torch.int64), ("a", torch.float32))},
}  # fmt: skip


def _product(rows: Tensor, per_token: Tensor, layer: Layer, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """As `split_w4_linear` has it, by the expert of each row."""
    w, scale, assist = layer
    scales = take(fp32_of(scale), experts)
    scales = scales.unsqueeze(1) if scales.dim() == 2 else scales
    weights = unpack_words(take(w, experts)).to(torch.int32).unflatten(1, (scales.shape[1], -1))
    high, low = (_of_half(half, weights, scales) for half in halves(rows))
    return joined(high, low, take(assist, experts), per_token, dtype)


def _of_half(half: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """half [N, in] and weights [N, groups, in / groups, out] int32, scales [N, groups, out] fp32 -> [N, out]."""
    rows = half.unflatten(1, (scales.shape[1], 1, -1))
    totals = torch.bmm(rows.flatten(0, 1), weights.flatten(0, 1)).view(scales.shape)
    return in_order(leaving_the_cube(totals, scales).transpose(0, 1))


@pattern(dims=_DIMS, examples=_SIZES, cases=_CASES, dtypes=_DTYPES, holds=(torch.int8, torch.int32, torch.int64))
def split_w4_grouped_mlp(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    w_gate_up: Tensor,
    s_gate_up: Tensor,
    a_gate_up: Tensor,
    w_down: Tensor,
    s_down: Tensor,
    a_down: Tensor,
) -> Tensor:
    """The sum over a of weights[t, a] * down(silu(gate(x)) * up(x)) by expert ids[t, a], as the cube has int4.

    x, weights and ids as `quant_grouped_mlp` has them; w_gate_up [experts, hidden, width / 4] int32, gate first,
    w_down [experts, width, hidden / 8] int32, both as `unpack_words` reads them, s_gate_up [experts, 2 * width] and
    s_down [experts, hidden], or with groups of inputs as [experts, groups, ...], int64, a_gate_up [experts, 2 * width]
    and a_down [experts, hidden] fp32 -> x's shape. Each layer is rounded to x's dtype as `split_w4_linear` is, and has
    its assist from outside; the weighted sum is fp32, rounded once. Source: the W4A8_DYNAMIC experts of vllm-ascend
    182b75e, by npu_grouped_matmul.
    """
    gate_up, down = (w_gate_up, s_gate_up, a_gate_up), (w_down, s_down, a_down)
    return chosen_experts(x, weights, ids, gate_up, down, dynamic_quantize, _product)


@split_w4_grouped_mlp.constraint
def _(x: Tensor, w_gate_up: Tensor, s_gate_up: Tensor, a_gate_up: Tensor) -> None:
    held_as_words(x.shape[-1], w_gate_up, s_gate_up, a_gate_up, (w_gate_up.shape[0],))


@split_w4_grouped_mlp.constraint
def _(w_gate_up: Tensor, w_down: Tensor, s_down: Tensor, a_down: Tensor) -> None:
    held_as_words(4 * w_gate_up.shape[-1], w_down, s_down, a_down, (w_gate_up.shape[0],))
