"""Rows as 8-bit floats by the largest number of each."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quantize import FLOATS

LARGEST = 448.0
"""The largest float8_e4m3fn, which has no infinities."""


@pattern(dims={"x": "... H"}, holds=(torch.float8_e4m3fn,))
def fp8_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x * r as float8_e4m3fn and 1 / r, where r = 448 / max |x| of each row.

    x [..., hidden] -> [..., hidden] float8_e4m3fn, and the scales that undo it, [...] fp32. In fp32, r one quotient
    and the scale its reciprocal as it was rounded, as in `dynamic_quantize`. x * r is held to +-448 before the cast,
    which rounds to the nearest, halves to even. A row of zeros has scale 0 and zeros, as has one whose largest number
    is so small that r is infinite, but for +-448 where it is not zero. Source: the per-token dynamic scheme of
    compressed-tensors 0.20, with the arithmetic of npu_dynamic_quant of torch_npu, op-plugin 517f2e7.
    """
    wide = x.to(torch.float32)
    largest = wide.abs().amax(-1)
    factor = torch.full_like(largest, LARGEST) / largest
    scaled = torch.nan_to_num(wide * factor.unsqueeze(-1), nan=0.0).clamp(-LARGEST, LARGEST)
    return scaled.to(torch.float8_e4m3fn), factor.reciprocal()


@fp8_quantize.constraint
def _(x: Tensor) -> None:
    require(x.dtype in FLOATS, "x must be bf16, fp16 or fp32", x.dtype)
