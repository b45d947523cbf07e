"""The (sum and) norm in front of layers of int8, by a scale that is known before."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.normed import normed, rows_of
from glmfuse.patterns.quantize import quantize

LEADS: tuple[dict[str, int | torch.dtype], ...] = ({"...": 2}, {"...": 1})
"""[batch, tokens, hidden] is made rows, and [tokens, hidden] is rows."""


@pattern(
    dims={"x": "... H", "residual": "... H", "w_norm": "H", "scale": "H", "offset": "H", "inverse": "H"},
    cases=LEADS,
    holds=(torch.int8,),
)
def norm_quantize(
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    inverse: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """(Add,) RMSNorm, and the norm as rows of int8: norm * scale + offset.

    x, residual [..., hidden], w_norm [hidden]; scale, offset and inverse as `quantize` takes them -> rows [tokens,
    hidden] int8, the norm [..., hidden] of x's dtype, and with a residual the sum of the two. The norm is an output
    because others may read it, as GLM's router does. Source: AddRMSNormW8A8Quant of vllm-ascend 182b75e.
    """
    hidden, total = normed(x, residual, w_norm, eps)
    return quantize(rows_of(hidden), scale, offset, inverse, False), hidden, *total
