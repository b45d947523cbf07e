"""The residual sum and its normalisation."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.rms_norm import rms_norm


@pattern(dims={"x": "... H", "residual": "... H", "w": "H"})
def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """rms_norm(x + residual), and the sum.  x, residual [..., hidden], w [hidden] -> both [..., hidden].

    The sum is rounded to the storage dtype before it is normalised. Source: Glm4MoeDecoderLayer of
    transformers.
    """
    total = x + residual
    return rms_norm(total, w, eps), total
