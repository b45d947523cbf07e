"""The numbers and sizes of one seed, for a variant of a pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glmfuse.matching.pattern import Variant
from tests.offline_ascend.arguments import Draw as OperatorDraw

EPS = 1e-5
Arguments = dict[str, Any]


class Draw(OperatorDraw):
    """Sizes and numbers of one seed, for a variant of a pattern in a dtype."""

    def __init__(self, seed: int, dtype: torch.dtype, variant: Variant) -> None:
        super().__init__(seed)
        self.dtype = dtype
        self.flags = dict(variant.flags)
        self.absent = variant.absent
        self.sizes = dict(variant.sizes)

    def values(self, *shape: int, scale: float = 1.0, around: float = 0.0, wide: bool = False) -> Tensor:
        """Normal numbers of the model's dtype, or of fp32."""
        drawn = self.normal(*shape, dtype=torch.float32) * scale + around
        return drawn if wide else drawn.to(self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """A weight whose products are of order 1."""
        return self.values(*shape, scale=shape[-1] ** -0.5)

    def unless_absent(self, **tensors: Tensor) -> Arguments:
        """These arguments, None for what the variant leaves out."""
        return {name: None if name in self.absent else tensor for name, tensor in tensors.items()}
