"""Modules of a quantised model on an NPU, in the place of those that `quantization.modules` loaded.

The tensors of a prepared layer are parameters, so that graphs see weights; a call is torch_npu's operators.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from glmfuse.quantization.npu.experts import EXPERTS
from glmfuse.quantization.npu.linear import LINEARS
from glmfuse.quantization.prepare.layers import Layer

T = TypeVar("T", bound=Layer)


def as_parameter(value: Tensor) -> nn.Parameter:
    """What is one already stays the same one: layers that share it show that in a graph."""
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)


class Weights(nn.Module, Generic[T]):
    """A prepared layer's tensors as parameters."""

    def __init__(self, layer: T) -> None:
        super().__init__()
        self.form = type(layer)
        for name, value in layer._asdict().items():
            self.register_parameter(name, value if value is None else as_parameter(value))

    def layer(self) -> T:
        """The layer again."""
        return self.form(*(getattr(self, name) for name in self.form._fields))


class NpuLinear(nn.Module):
    """x [..., in] -> [..., out] by a type's operators."""

    def __init__(self, kind: str, layer: Layer) -> None:
        super().__init__()
        self.kind, self.weights = kind, Weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        """As `npu.linear` has it for this type."""
        return LINEARS[self.kind](x, self.weights.layer())

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"kind={self.kind}"


class NpuExperts(nn.Module):
    """hidden_states [tokens, hidden], top_k_index and top_k_weights [tokens, active] -> [tokens, hidden]."""

    def __init__(self, kind: str, gate_up: Layer, down: Layer) -> None:
        super().__init__()
        self.kind, self.gate_up, self.down = kind, Weights(gate_up), Weights(down)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As `npu.experts` has it for this type; the routing weights in fp32."""
        weights = top_k_weights.to(torch.float32)
        return EXPERTS[self.kind](hidden_states, weights, top_k_index, self.gate_up.layer(), self.down.layer())

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"kind={self.kind}"
