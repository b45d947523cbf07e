"""The (sum and) norm in front of layers of 8-bit floats."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.fp8_quantize import fp8_quantize
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.normed import normed, rows_of


@pattern(dims={"x": "... H", "residual": "... H", "w_norm": "H"}, cases=LEADS, holds=fp8_quantize.holds)
def norm_fp8_quantize(x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float) -> tuple[Tensor, ...]:
    """(Add,) RMSNorm, and the norm as rows of float8_e4m3fn with a scale each.

    x, residual [..., hidden], w_norm [hidden] -> rows [tokens, hidden] float8_e4m3fn, their scales [tokens] fp32, the
    norm [..., hidden] of x's dtype, and with a residual the sum of the two. Source: `fp8_quantize` of the norm, as
    layers of the per-token FP8 scheme have it.
    """
    hidden, total = normed(x, residual, w_norm, eps)
    return *fp8_quantize(rows_of(hidden)), hidden, *total
