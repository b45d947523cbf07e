"""A layer's tensors for one rank of several (tensor parallel): which axis of each is dealt out.

Layers that are one matrix in a model and several in a checkpoint (gate and up, q, k and v, experts) are dealt out
before they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from glmfuse.quantization.prepare.assist import scale_bias_columns
from glmfuse.quantization.prepare.expect import divides, refusal
from glmfuse.quantization.schemes import SHARDS


@dataclass(frozen=True, slots=True)
class Split:
    """One of `ranks` equal parts; by inputs for a row-parallel layer, else by outputs."""

    rank: int
    ranks: int
    by_inputs: bool


@dataclass(frozen=True, slots=True)
class Axes:
    """The axis that runs over outputs, and the one over inputs; None where a tensor has none, or one number."""

    outputs: int | None
    inputs: int | None


AXES: Final[Mapping[str, Axes]] = MappingProxyType(
    {
        "weight": Axes(0, 1),
        "weight_scale": Axes(0, None),
        "weight_offset": Axes(0, None),
        "weight_scale_second": Axes(0, 1),
        "weight_offset_second": Axes(0, 1),
        "scale_bias": Axes(0, 1),
        "deq_scale": Axes(0, None),
        "quant_bias": Axes(0, None),
        "bias": Axes(0, None),
        "input_scale": Axes(None, None),
        "input_offset": Axes(None, None),
    }
)
"""By a tensor's name in a checkpoint. A weight of two int4 to a byte has its bytes dealt out, so no pair is torn."""

ADDED: Final = frozenset({"bias", "quant_bias"})
"""Added once to a sum over ranks: where inputs are split the first rank has it and the others have zeros.

Source: vllm-ascend, apply of w8a8_static.py, which leaves it out elsewhere.
"""


def shard(tensors: Mapping[str, Tensor], split: Split, layer: str) -> dict[str, Tensor]:
    """This rank's part of each tensor, by its name in the checkpoint; copies, so that the whole may go.

    Raises:
        QuantizationError: a tensor is unknown, or does not come apart into so many.
    """
    if not 0 <= split.rank < split.ranks:
        raise refusal(layer, f"a rank of {split.ranks}", f"rank {split.rank}")
    if strangers := sorted(set(tensors) - set(AXES)):
        raise refusal(layer, f"tensors named {', '.join(AXES)}", ", ".join(strangers))
    if split.by_inputs and "scale_bias" in tensors:
        _check_parts(tensors["scale_bias"], split, layer)
    return {name: _part(name, tensor, split, layer) for name, tensor in tensors.items()}


def _part(name: str, tensor: Tensor, split: Split, layer: str) -> Tensor:
    axis = AXES[name].inputs if split.by_inputs else AXES[name].outputs
    if axis is None:
        elsewhere = split.by_inputs and split.rank > 0 and name in ADDED
        return torch.zeros_like(tensor) if elsewhere else tensor.clone()
    what = f"{name} {list(tensor.shape)} with axis {axis} in {split.ranks} equal parts"
    size = divides(f"{layer}.{name}", split.ranks, tensor.shape[axis], what)
    return tensor.narrow(axis, split.rank * size, size).clone()


def _check_parts(tensor: Tensor, split: Split, layer: str) -> None:
    """A row-parallel layer has sixteen columns, which so many ranks can share."""
    scale_bias_columns(True, split.ranks, layer)
    if tensor.shape[-1] != SHARDS:
        raise refusal(layer, f"scale_bias with {SHARDS} columns in a row-parallel layer", list(tensor.shape))
