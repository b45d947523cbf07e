"""The end of an attention layer: output projection, residual sum, and the normalisation of the sum."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern, spelling_of
from glmfuse.patterns.add_rms_norm import add_rms_norm
from glmfuse.patterns.linear import linear


@pattern(dims={"x": "... H", "w": "O H", "b": "O", "residual": "... O", "w_norm": "O"})
def linear_add_rms_norm(
    x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor, w_norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """rms_norm(residual + x wᵀ + b), and the sum.  x [..., in], residual [..., out] -> both [..., out].

    w [out, in], b [out] or None, w_norm [out]. The product is rounded before it is added. Source:
    Glm4MoeDecoderLayer of transformers, from o_proj to post_attention_layernorm.
    """
    return add_rms_norm(residual, linear(x, w, b), w_norm, eps)


@spelling_of(linear_add_rms_norm)
def product_first(
    x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor, w_norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """With the operands of the sum the other way round."""
    return add_rms_norm(linear(x, w, b), residual, w_norm, eps)
