"""Rows as int8 the way torchao scales them."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quantize import FLOATS

_LEAST_SCALE = torch.finfo(torch.float32).eps


@pattern(dims={"x": "... H"}, holds=(torch.int8,))
def torchao_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x * (1 / scale) as int8 and the scale, where scale = max |x| / 127.5 of each row.

    x [..., hidden] -> [..., hidden] int8, and the scales that undo it, [..., 1] fp32. Not `dynamic_quantize`: the
    quotient is rounded to x's dtype and is at least 2^-23, the largest number of a row is 127.5 steps and becomes 127,
    or -128 where it is negative, and the scale itself is multiplied by, not a reciprocal of the factor. Source:
    Int8DynamicActivationInt8WeightConfig of torchao 0.18, symmetric, by rows.
    """
    least, most = torch.amin(x, -1, keepdim=True), torch.amax(x, -1, keepdim=True)
    least, most = torch.minimum(least, torch.zeros_like(least)), torch.maximum(most, torch.zeros_like(most))
    step = torch.maximum(-least, most) / 127.5
    zero = torch.full_like(step, 0).to(torch.int8)
    scale = step.clamp(min=_LEAST_SCALE).to(torch.float32)
    rows = torch.round(x * (1.0 / scale)) + zero
    return rows.clamp(-128, 127).to(torch.int8), scale


@torchao_quantize.constraint
def _(x: Tensor) -> None:
    require(x.dtype in FLOATS, "x must be bf16, fp16 or fp32", x.dtype)
