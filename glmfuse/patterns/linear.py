"""A linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glmfuse.matching.register import pattern


@pattern(dims={"x": "... H", "w": "O H", "b": "O"})
def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x wᵀ + b.  x [..., hidden], w [out, hidden], b [out] or None -> [..., out].

    One product of all rows, however x lies in memory; bias and product are rounded once. Source:
    torch.nn.functional.linear.
    """
    return F.linear(x.reshape(-1, x.shape[-1]), w, b).view(*x.shape[:-1], w.shape[0])
