"""A norm with a residual or without; no pattern by itself."""

from __future__ import annotations

from torch import Tensor

from glmfuse.patterns.add_rms_norm import add_rms_norm
from glmfuse.patterns.rms_norm import rms_norm


def normed(x: Tensor, residual: Tensor | None, w: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The norm of x, or of x + residual, and the sum where there is one.  x, residual [..., hidden], w [hidden]."""
    if residual is None:
        return rms_norm(x, w, eps), ()
    hidden, total = add_rms_norm(x, residual, w, eps)
    return hidden, (total,)


def rows_of(x: Tensor) -> Tensor:
    """[..., hidden] -> [tokens, hidden]; what quantises and multiplies takes rows."""
    return x.reshape(-1, x.shape[-1])
