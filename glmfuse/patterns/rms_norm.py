"""Root mean square layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern


@pattern(dims={"x": "... H", "w": "H"})
def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """w * x / sqrt(mean(x²) + eps), in fp32, rounded to x's dtype before the weight.

    x [..., hidden], w [hidden] -> [..., hidden]. Source: Zhang and Sennrich 2019, equation 4, with the
    rounding of GLM-4.5 in transformers.
    """
    wide = x.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return w * scaled.to(x.dtype)


@rms_norm.constraint
def _(x: Tensor) -> None:
    require(x.dtype.is_floating_point, "x must be floating point", x.dtype)
