"""Numbers rounded to what int8 or fp8 could hold, and still floating."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quantize import FLOATS


@pattern(dims={"x": "... H", "scale": "... 1", "zero": "... 1", "low": "", "high": ""})
def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None, low: Tensor, high: Tensor, floating: bool) -> Tensor:
    """(rounded(x / scale + zero, clamped) - zero) * scale, all in x's dtype.

    x [..., hidden]; scale and zero [..., 1], or what x has to be divided by where it lies otherwise; low and high are
    single numbers, tensors in the graph -> x's shape and dtype. Rounded to integers, halves to the even one, or with
    `floating` to float8_e4m3fn. Nothing here is int8: the product that follows is one of floating matrices, a
    `linear`. Source: fake_quantize of compressed-tensors 0.20.
    """
    held = x / scale
    if zero is not None:
        held = held + zero
    held = torch.clamp(held, low, high)
    held = held.to(torch.float8_e4m3fn).to(x.dtype) if floating else torch.round(held)
    return (held if zero is None else held - zero) * scale


@fake_quantize.constraint
def _(x: Tensor) -> None:
    require(x.dtype in FLOATS, "x must be bf16, fp16 or fp32", x.dtype)


@pattern(dims={"x": "... H", "half": "", "least": "", "zero": "... 1", "low": "", "high": ""})
def fake_quantize_rows(
    x: Tensor, half: Tensor, least: Tensor, zero: Tensor | None, low: Tensor, high: Tensor, floating: bool
) -> Tensor:
    """fake_quantize by the largest number of each row over `half` the range; `least` where a row is zeros.

    x [..., hidden], zero [..., 1]; half, least, low and high single numbers -> x's shape and dtype. Not
    `dynamic_quantize`: half is 127.5 for int8, and quotients are rounded to x's dtype. Source: symmetric token
    strategy of compressed-tensors 0.20, which for x of two axes is one scale for the whole tensor, and no site.
    """
    lowest, highest = torch.amin(x, -1, keepdim=True), torch.amax(x, -1, keepdim=True)
    lowest = torch.minimum(lowest, torch.zeros_like(lowest))
    highest = torch.maximum(highest, torch.zeros_like(highest))
    scale = torch.maximum(lowest.abs(), highest.abs()) / half
    return fake_quantize(x, torch.where(scale == 0, least, scale), zero, low, high, floating)
