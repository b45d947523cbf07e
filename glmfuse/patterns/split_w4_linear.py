"""A linear layer of int8 rows and int4 weights whose rows are multiplied in two halves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.int4 import unpack_words
from glmfuse.patterns.quant_linear import as_long
from glmfuse.patterns.quantize import HALVES
from glmfuse.patterns.split_int4 import fp32_of, halves, joined, leaving_the_cube
from glmfuse.patterns.w4_linear import in_order

_DIMS = {"x": "T G*M", "w": "G*M P", "scale": "G 8*P", "assist": "8*P", "per_token": "T"}
_CASES: tuple[dict[str, int], ...] = ({}, {"G": 1})
"""One group is no dimension that anything is transposed around."""

_HELD = (torch.int32, torch.int64, torch.float32)
"""Words of int4, words of scales, what a product in halves lacks."""

_DTYPES = {
    "x": torch.int8,
    **dict(zip(("w", "scale", "assist"), _HELD, strict=True)),
    "per_token": torch.float32,
}


@pattern(dims=_DIMS, cases=_CASES, dtypes=_DTYPES, holds=(torch.int8, torch.int32, torch.int64))
def split_w4_linear(
    x: Tensor, w: Tensor, scale: Tensor, assist: Tensor, per_token: Tensor, dtype: torch.dtype
) -> Tensor:
    """(16 * high w + low w + assist) * per_token, rounded once, to dtype, where x is 16 * high + low + 8.

    x [tokens, in] int8, w [in, out / 8] int32 as `unpack_words` reads it, scale [out], or [groups, out] for each in /
    groups inputs, int64 with fp32 in the lower half, assist [out] and per_token [tokens] fp32 -> [tokens, out] of
    dtype, bf16 or fp16. The sum of products of each half and group is int32; it is rounded to fp32, times the group's
    scale, and leaves the cube as fp16. Groups are added in fp32, first to last; that they leave it one by one is
    assumed. assist is 8 * the sum of the scaled weights where the layer is to be `w4_linear`; a graph does not show
    that, so it is an argument, and this a pattern of its own: SPLIT_INT4 is how far the two are apart. Source:
    npu_grouped_matmul of torch_npu, op-plugin 517f2e7; its kernel for Atlas A2 and A3, hicann/ops-transformer c29bc10.
    """
    scales = fp32_of(scale).unflatten(-1, (1, -1)) if scale.dim() == 1 else fp32_of(scale)
    weight = unpack_words(w).to(torch.int32).unflatten(0, (scales.shape[0], -1))
    high, low = (_product(half, weight, scales) for half in halves(x))
    return joined(high, low, assist, per_token, dtype)


def _product(half: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """half [tokens, in] and weight [groups, in / groups, out] int32, scales [groups, out] fp32 -> [tokens, out]."""
    rows = half.unflatten(-1, (scales.shape[0], -1)).transpose(0, 1)
    return in_order(leaving_the_cube(torch.bmm(rows, weight), scales.unsqueeze(1)))


@split_w4_linear.constraint
def _(x: Tensor, per_token: Tensor, dtype: torch.dtype) -> None:
    for name, given, taken in (("x", x, torch.int8), ("per_token", per_token, torch.float32)):
        require(given.dtype == taken, f"{name} must be {taken}", given.dtype)
    require(
        x.dim() == 2 and per_token.dim() == 1, "x must be a matrix, per_token one row", f"{x.shape}, {per_token.shape}"
    )
    as_long(x.shape[0], per_token=per_token)
    require(dtype in HALVES, "the result must be bf16 or fp16", dtype)


@split_w4_linear.constraint
def _(x: Tensor, w: Tensor, scale: Tensor, assist: Tensor) -> None:
    held_as_words(x.shape[-1], w, scale, assist, ())


def held_as_words(inputs: int, w: Tensor, scale: Tensor, assist: Tensor, lead: tuple[int, ...]) -> None:
    """Require a layer as the operator reads it: words of outputs, scales by outputs or by groups of inputs, an assist.

    lead: what comes before inputs and outputs in all of them.
    """
    dtypes = (w.dtype, scale.dtype, assist.dtype)
    require(dtypes == _HELD, "w, scale and assist must be int32, int64 and fp32", ", ".join(map(str, dtypes)))
    require(_is(w, (*lead, inputs, w.shape[-1])), f"w must be a matrix of {inputs} inputs", w.shape)
    require(w.is_contiguous(), "words of w must hold neighbours among outputs", w.stride())
    outputs = 8 * w.shape[-1]
    require(_is(assist, (*lead, outputs)), f"assist must have {outputs} numbers", assist.shape)
    groups = scale.shape[-2] if scale.dim() == len(lead) + 2 else 1
    by_groups = _is(scale, (*lead, groups, outputs)) and statically_known_true(inputs % groups == 0)
    fits = by_groups or _is(scale, (*lead, outputs))
    require(fits, f"scale must have {outputs} numbers, or as many for each of whole groups", scale.shape)


def _is(given: Tensor, shape: tuple[int, ...]) -> bool:
    pairs = zip(given.shape, shape, strict=False)
    return given.dim() == len(shape) and all(statically_known_true(mine == wanted) for mine, wanted in pairs)
