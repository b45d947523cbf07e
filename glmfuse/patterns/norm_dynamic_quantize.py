"""The (sum and) norm in front of layers of int8, by the largest number of each row."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.normed import normed, rows_of


@pattern(dims={"x": "... H", "residual": "... H", "w_norm": "H"}, cases=LEADS, holds=dynamic_quantize.holds)
def norm_dynamic_quantize(x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float) -> tuple[Tensor, ...]:
    """(Add,) RMSNorm, and the norm as rows of int8 with a scale each.

    x, residual [..., hidden], w_norm [hidden] -> rows [tokens, hidden] int8, their scales [tokens] fp32, the norm
    [..., hidden] of x's dtype, and with a residual the sum of the two. The norm is rounded before it is quantised,
    which npu_add_rms_norm_dynamic_quant does not do. Source: `dynamic_quantize` of the norm, as W8A8_DYNAMIC layers
    of vllm-ascend 182b75e have it.
    """
    hidden, total = normed(x, residual, w_norm, eps)
    return *dynamic_quantize(rows_of(hidden)), hidden, *total
