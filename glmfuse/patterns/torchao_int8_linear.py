"""torchao's product of int8 rows and weights."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern, spelling_of

_DTYPES = {"rows": torch.int8, "row_scale": torch.float32, "w": torch.int8, "scale": torch.float32}


def _scaled(total: Tensor, row_scale: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The product undone, rounded between the two scales."""
    return (total.to(torch.float32) * row_scale).to(dtype) * scale.flatten()


@pattern(dims={"rows": "T K", "row_scale": "T 1", "w": "O K", "scale": "O 1"}, dtypes=_DTYPES, holds=(torch.int8,))
def torchao_int8_linear(rows: Tensor, row_scale: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows wᵀ * row_scale, rounded to dtype) * scale.

    rows [tokens, in] int8 and row_scale [tokens, 1] fp32 of torchao_quantize, w [out, in] int8, scale [out, 1] fp32,
    dtype bf16 or fp16 -> [tokens, out] fp32. Not `quant_linear`: that one rounds once, after both scales, and adds
    its bias before; here a bias is added in the model's shape, and the sum is rounded, outside. The product is one of
    int32, as in `quant_linear`. Source: Int8Tensor of torchao 0.18.
    """
    return _scaled(torch.mm(rows.to(torch.int32), w.to(torch.int32).t()), row_scale, scale, dtype)


@torchao_int8_linear.constraint
def _(rows: Tensor, row_scale: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    require(rows.dtype == torch.int8 and w.dtype == torch.int8, "rows and w must be int8", f"{rows.dtype}, {w.dtype}")
    scales = (row_scale.dtype, scale.dtype)
    require(scales == (torch.float32, torch.float32), "both scales must be fp32", f"{scales[0]}, {scales[1]}")
    require(dtype in (torch.bfloat16, torch.float16), "the product must be rounded to bf16 or fp16", dtype)


@spelling_of(torchao_int8_linear)
def by_int_mm(rows: Tensor, row_scale: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """By the product of int8 matrices: torchao's way on a CPU with tiles for it, and on one without VNNI."""
    return _scaled(torch._int_mm(rows, w.t()), row_scale, scale, dtype)


@spelling_of(torchao_int8_linear)
def by_unsigned_int_mm(rows: Tensor, row_scale: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """By rows shifted to uint8, and the shift taken off the product: torchao's way on a CPU with VNNI."""
    shifted = (rows.to(torch.int32) + 128).to(torch.uint8)
    shift = w.t().sum(dim=0, keepdim=True, dtype=torch.int32) * 128
    return _scaled(torch._int_mm(shifted, w.t()) - shift, row_scale, scale, dtype)
