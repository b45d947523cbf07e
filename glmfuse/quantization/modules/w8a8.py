"""int8 rows by scales that are known before, int8 weights by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quantize import quantize
from glmfuse.quantization.modules.held import put
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.prepare.static import input_scale
from glmfuse.quantization.schemes import W8A8

_SHARED = ("factor", "offset", "inverse")


class W8A8Linear(QuantizedLinear):
    """x * factor + offset as int8, times weight, plus quant_bias, times deq_scale; factor is 1 / input_scale.

    A bias of the float layer is part of quant_bias. Source: type W8A8 of ModelSlim; w8a8_static.py of vllm-ascend.
    """

    kind = W8A8
    weight: Tensor
    input_scale: Tensor
    input_offset: Tensor
    quant_bias: Tensor
    deq_scale: Tensor
    factor: Tensor
    offset: Tensor
    inverse: Tensor

    def product(self, rows: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        x = quantize(rows, self.factor, self.offset, self.inverse, False)
        return quant_linear(x, self.weight.t(), self.deq_scale, None, self.quant_bias, None, rows.dtype)

    def after_loading(self) -> None:
        """Take the reciprocal once, for every channel."""
        made = input_scale(self.input_scale, self.input_offset, self.sizes.inputs, self.name)
        for name, value in made._asdict().items():
            put(self, name, value)


def share_inputs(model: nn.Module) -> None:
    """Let layers of one parent whose input scales and offsets are equal hold them as the same tensors.

    q, k and v have equal ones in ModelSlim's checkpoints. That they are equal only shows in a graph when they are one,
    and then x is quantised once.
    """
    for parent in model.modules():
        first: list[W8A8Linear] = []
        for child in parent.children():
            if isinstance(child, W8A8Linear):
                origin = next((other for other in first if _scaled_alike(child, other)), child)
                first.append(origin)
                for name in _SHARED:
                    setattr(child, name, getattr(origin, name))


def _scaled_alike(one: W8A8Linear, other: W8A8Linear) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in _SHARED)
