"""A linear layer that multiplies quantised rows: what all kinds have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from glmfuse.quantization.modules.held import hold
from glmfuse.quantization.schemes import Form, Kind, Linear


class QuantizedLinear(nn.Module):
    """y = x W^T by the arithmetic of one kind of weights.  x [..., in] -> [..., out], of x's dtype, bf16 or fp16.

    Its parameters have the checkpoint's names, shapes and dtypes; `after_loading` makes of them, once, what a call
    reads. A call is the plain torch of the pattern functions, so a captured graph is those patterns.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str, sizes: Linear, form: Form, dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.sizes = name, sizes
        hold(self, self.kind.holds(sizes, form), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As rows [tokens, in] where they are quantised, so that a projection has one layout in every graph."""
        return self.product(x.view(-1, self.sizes.inputs)).view(*x.shape[:-1], self.sizes.outputs)

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""

    @abstractmethod
    def after_loading(self) -> None:
        """Make of the checkpoint's tensors what `product` reads.

        Raises:
            CheckpointError, WeightError: values or shapes that no call fits.
        """

    @property
    def _bias(self) -> Tensor | None:
        return self.get_parameter("bias") if self.sizes.bias else None

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"{self.sizes.inputs}, {self.sizes.outputs}, kind={self.kind.name}"
