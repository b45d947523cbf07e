"""A linear layer of int8 rows and int4 weights that are scaled in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.int4 import unpack_int4
from glmfuse.patterns.quant_linear import as_long
from glmfuse.patterns.quantize import FLOATS, HALVES

_DTYPES = {
    "x": torch.int8,
    "w": torch.uint8,
    "scale": torch.float32,
    "per_token": torch.float32,
    "bias": torch.float32,
}


def in_order(parts: Tensor) -> Tensor:
    """The sum over the first axis, one after the other, each sum rounded.  [groups, ...] fp32 -> [...].

    Tensor.sum adds in several columns that it joins at the end, and how many is the machine's.
    """
    nothing = torch.zeros_like(parts[:1])
    first = torch.zeros(parts.shape[0], dtype=torch.int64, device=parts.device)
    return nothing.index_add(0, first, parts)[0]


_DIMS = {"x": "T G*M", "w": "G*M P", "scale": "G 2*P", "per_token": "T", "bias": "2*P"}
_CASES: tuple[dict[str, int], ...] = ({}, {"G": 1})
"""One group is no dimension that anything is transposed around."""


@pattern(dims=_DIMS, cases=_CASES, dtypes=_DTYPES, holds=(torch.int8, torch.uint8))
def w4_linear(
    x: Tensor, w: Tensor, scale: Tensor, per_token: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(the sum over groups of (x w) * scale) * per_token + bias, rounded once, to dtype.

    x [tokens, in] int8, w [in, out / 2] uint8 with two int4 in a byte as `unpack_int4` reads them, scale [groups, out]
    fp32, per_token [tokens] fp32, bias [out] floating -> [tokens, out] of dtype, bf16 or fp16. Each group of in /
    groups inputs has its own sum of products, which is int32, rounded to fp32 and times the group's scale; the
    groups are added in fp32, first to last. One group is a scale for each channel. Source: the W4A8 of vllm-ascend
    182b75e, whose scales of groups and of channels are one product here. What npu_grouped_matmul rounds to fp16 between
    the two halves of each row is another formula: `split_w4_linear`.
    """
    groups = scale.shape[0]
    rows = x.to(torch.int32).unflatten(-1, (groups, -1)).transpose(0, 1)
    sums = torch.bmm(rows, unpack_int4(w).to(torch.int32).unflatten(0, (groups, -1)))
    y = in_order(sums.to(torch.float32) * scale.unsqueeze(1)) * per_token.unsqueeze(-1)
    if bias is not None:
        y = y + bias.to(torch.float32)
    return y.to(dtype)


@w4_linear.constraint
def _(x: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    require(x.dtype == torch.int8 and w.dtype == torch.uint8, "x must be int8, w uint8", f"{x.dtype}, {w.dtype}")
    require(x.dim() == 2 and w.dim() == 2, "x and w must be matrices", f"{x.dim()} and {w.dim()} dimensions")
    require(scale.dim() == 2, "scale must have a row for each group", f"{scale.dim()} dimensions")
    require(dtype in HALVES, "the result must be bf16 or fp16", dtype)


@w4_linear.constraint
def _(scale: Tensor, per_token: Tensor, bias: Tensor | None) -> None:
    for name, given in (("scale", scale), ("per_token", per_token)):
        require(given.dtype == torch.float32, f"{name} must be fp32", given.dtype)
    if bias is not None:
        require(bias.dtype in FLOATS, "bias must be bf16, fp16 or fp32", bias.dtype)
        require(bias.dim() == 1, "bias must be one row", f"{bias.dim()} dimensions")


@w4_linear.constraint
def _(x: Tensor, w: Tensor, per_token: Tensor, bias: Tensor | None) -> None:
    as_long(x.shape[0], per_token=per_token)
    as_long(2 * w.shape[1], bias=bias)
