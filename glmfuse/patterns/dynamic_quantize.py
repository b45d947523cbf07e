"""Rows as int8 by the largest number of each."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quantize import FLOATS
from glmfuse.patterns.saturated import saturated


@pattern(dims={"x": "... H"}, holds=(torch.int8,))
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x * r as int8 and 1 / r, where r = 127 / max |x| of each row.

    x [..., hidden] -> [..., hidden] int8, and the scales that undo it, [...] fp32. In fp32: r is one quotient, the
    scale the reciprocal of it as it was rounded, which is not max / 127 to the last bit. x * r goes to the nearest
    integer, halves to the even one. A row of zeros has scale 0 and zeros: 127 / 0 is infinite, its reciprocal 0, and
    0 times it is no number. That follows from the kernel's arithmetic; no document says it. Source:
    npu_dynamic_quant of torch_npu, op-plugin 517f2e7; its AscendC for Atlas A2 and A3, hicann/ops-nn e5c3fa9.
    """
    wide = x.to(torch.float32)
    largest = wide.abs().amax(-1)
    factor = torch.full_like(largest, 127.0) / largest  # 127.0 / largest would be 127 times a rounded reciprocal
    return saturated(wide * factor.unsqueeze(-1)), factor.reciprocal()


@dynamic_quantize.constraint
def _(x: Tensor) -> None:
    require(x.dtype in FLOATS, "x must be bf16, fp16 or fp32", x.dtype)
