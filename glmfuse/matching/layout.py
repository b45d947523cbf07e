"""How a tensor lies in memory, without its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from glmfuse.canonicalize.term import shape_of, size_of


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor without its data; sizes and strides are numbers or expressions of the model's symbols."""

    shape: tuple[int | sympy.Expr, ...]
    stride: tuple[int | sympy.Expr, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, val: torch.Tensor) -> Layout:
        """Read a fake tensor's layout; adds no guard."""
        return cls(shape_of(val), tuple(size_of(step) for step in val.stride()), val.dtype, val.device)

    def is_alike(self, node: fx.Node) -> bool:
        """Whether a node's tensor lies like this one: views downstream rely on strides."""
        other = Layout.of(node.meta["val"])
        return self.significant() == other.significant()

    def significant(self) -> tuple[Any, ...]:
        """What can be told apart: the stride of a dimension of size 1 cannot."""
        steps = tuple(step for size, step in zip(self.shape, self.stride, strict=True) if size != 1)
        return (self.shape, self.dtype, self.device, () if 0 in self.shape else steps)

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape} and strides {self.stride} on {self.device}"
