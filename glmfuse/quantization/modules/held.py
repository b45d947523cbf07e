"""Tensors of a checkpoint as a module's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glmfuse.quantization.schemes import FLOATS, Held


def hold(module: nn.Module, tensors: Mapping[str, Held], dtype: torch.dtype) -> None:
    """Give a module an empty parameter for each of these; dtype is the model's, for those that follow it."""
    for name, held in tensors.items():
        if not held.optional:
            put(module, name, torch.empty(held.shape, dtype=dtype if held.dtypes == FLOATS else held.dtypes[0]))


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Hold this value under that name, in place of what was there."""
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def replace(module: nn.Module, dropped: tuple[str, ...], **values: Tensor) -> None:
    """Hold what was made of these parameters instead of them."""
    for name in dropped:
        if name in module._parameters:
            delattr(module, name)
    for name, value in values.items():
        put(module, name, value)


def stacked(held: Held, experts: int, projections: int) -> Held:
    """The same tensor of every expert, for so many projections of equal size one after the other."""
    rows, *rest = held.shape
    return Held((experts, projections * rows, *rest), held.dtypes, held.optional)
