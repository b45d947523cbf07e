"""The routed experts of a layer as one module: what all kinds have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glmfuse.quantization.modules.held import hold, stacked
from glmfuse.quantization.schemes import Form, Held, Kind, Linear

PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Which projections of each expert lie one after the other under one name, as transformers has them."""


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """How many experts there are, and the widths of what goes in and of what is between."""

    experts: int
    hidden: int
    width: int

    def linear(self, projection: str) -> Linear:
        """Sizes of one expert's projection."""
        if projection == "down_proj":
            return Linear(self.hidden, self.width, row_parallel=True)
        return Linear(self.width, self.hidden)


def merged_name(name: str, tensor: str) -> str:
    """`gate_up_proj` and `weight_scale` -> `gate_up_proj_scale`, by transformers' rule; `weight` -> `gate_up_proj`."""
    suffix = tensor.removeprefix("weight").removeprefix("_")
    return f"{name}_{suffix}" if suffix else name


class QuantizedExperts(nn.Module):
    """The sum of weights[t, a] times expert ids[t, a] of x[t], by the arithmetic of one kind of weights.

    Takes and gives what the experts of transformers do: hidden_states [tokens, hidden], top_k_index [tokens, active],
    top_k_weights [tokens, active] fp32 -> [tokens, hidden]. Every tensor of the checkpoint is there once, for all
    experts: gate's rows first, then up's.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str, sizes: ExpertSizes, form: Form, dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.sizes = name, sizes
        hold(self, merged_tensors(self.kind, sizes, form), dtype)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The patterns take [batch, tokens, hidden]; to a graph, the views are nothing."""
        return self.mlp(hidden_states.unsqueeze(0), top_k_weights, top_k_index).squeeze(0)

    @abstractmethod
    def mlp(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """[1, tokens, hidden] -> [1, tokens, hidden]."""

    @abstractmethod
    def after_loading(self) -> None:
        """Make of the checkpoint's tensors what `mlp` reads.

        Raises:
            CheckpointError, WeightError: values or shapes that no call fits.
        """

    def extra_repr(self) -> str:
        """For printing a model."""
        sizes = self.sizes
        return f"{sizes.experts} x ({sizes.hidden}, {sizes.width}), kind={self.kind.name}"


def merged_tensors(kind: Kind, sizes: ExpertSizes, form: Form) -> dict[str, Held]:
    """Every tensor of the experts, by its name in the module."""
    return {
        merged_name(name, tensor): stacked(held, sizes.experts, len(projections))
        for name, projections in PROJECTIONS.items()
        for tensor, held in kind.holds(sizes.linear(projections[0]), form).items()
    }
