"""Numbers as int8 by scales that are known before."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.saturated import saturated

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)


@pattern(dims={"x": "... H", "scale": "H", "offset": "H", "inverse": "H"}, carried=("inverse",), holds=(torch.int8,))
def quantize(x: Tensor, scale: Tensor, offset: Tensor | None, inverse: Tensor | None, divide: bool) -> Tensor:
    """x * scale + offset as int8, or x / scale + offset with `divide`.

    x [..., hidden]; scale and offset [hidden], or [1] for all channels -> [..., hidden] int8. In fp32: the product
    or quotient is rounded, then the sum, then it goes to the nearest integer, halves to the even one, and saturates.
    To multiply by a rounded reciprocal is not to divide, so the two are told apart. inverse is the reciprocal of
    scale, which vLLM hands on beside it and nothing reads. Source: npu_quantize of torch_npu, op-plugin 517f2e7.
    """
    wide, factor = x.to(torch.float32), scale.to(torch.float32)
    values = wide / factor if divide else wide * factor
    return saturated(values if offset is None else values + offset.to(torch.float32))


@quantize.constraint
def _(x: Tensor, scale: Tensor, offset: Tensor | None) -> None:
    require(x.dtype in FLOATS, "x must be bf16, fp16 or fp32", x.dtype)
    require(scale.dtype in FLOATS, "scale must be bf16, fp16 or fp32", scale.dtype)
    channels = ((1,), tuple(x.shape[-1:]))
    for name, given in (("scale", scale), ("offset", offset)):
        if given is not None:
            require(tuple(given.shape) in channels, f"{name} must be one number, or one for each channel", given.shape)
