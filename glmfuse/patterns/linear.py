"""A linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glmfuse.matching.register import pattern


@pattern(dims={"x": "... H", "w": "O H", "b": "O"})
def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x wᵀ + b.  x [..., hidden], w [out, hidden], b [out] or None -> [..., out].

    Source: torch.nn.functional.linear, bias and product rounded once.
    """
    return F.linear(x, w, b)
