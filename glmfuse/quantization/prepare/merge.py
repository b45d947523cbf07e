"""Layers of a checkpoint that are one in a model: gate and up side by side, experts one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from glmfuse.quantization.prepare.expect import refusal
from glmfuse.quantization.prepare.shard import AXES


def side_by_side(layers: Sequence[Mapping[str, Tensor]], layer: str) -> dict[str, Tensor]:
    """Layers of one input as one: their outputs one after the other.

    What belongs to the inputs, as static scales do, has to be the same in all. Two int4 to a byte lie along the
    outputs, so bytes follow bytes.

    Raises:
        QuantizationError: they hold other tensors, or do not share their inputs' scales.
    """
    return {name: _joined(name, [each[name] for each in layers], layer) for name in _names(layers, layer)}


def stacked(layers: Sequence[Mapping[str, Tensor]], layer: str) -> dict[str, Tensor]:
    """Experts as one, with a leading axis.

    Raises:
        QuantizationError: they hold other tensors, or of other shapes.
    """
    made = {name: [each[name] for each in layers] for name in _names(layers, layer)}
    for name, tensors in made.items():
        if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
            shapes = sorted({str(list(tensor.shape)) for tensor in tensors})
            raise refusal(f"{layer}.{name}", "experts of one shape and dtype", " and ".join(shapes))
    return {name: torch.stack(tensors) for name, tensors in made.items()}


def _names(layers: Sequence[Mapping[str, Tensor]], layer: str) -> list[str]:
    if not layers:
        raise refusal(layer, "layers to put together", "none")
    if odd := sorted({name for each in layers for name in set(each) ^ set(layers[0])}):
        raise refusal(layer, "layers that hold the same tensors", f"{', '.join(odd)} in some alone")
    if strangers := sorted(set(layers[0]) - set(AXES)):
        raise refusal(layer, f"tensors named {', '.join(AXES)}", ", ".join(strangers))
    return list(layers[0])


def _joined(name: str, tensors: Sequence[Tensor], layer: str) -> Tensor:
    axis = AXES[name].outputs
    if axis is not None:
        return torch.cat(list(tensors), axis)
    if not all(torch.equal(tensor, tensors[0]) for tensor in tensors):
        values = " and ".join(str(tensor.tolist()) for tensor in tensors)
        raise refusal(f"{layer}.{name}", "the same for layers of one input", values)
    return tensors[0].clone()
