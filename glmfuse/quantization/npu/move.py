"""A quantised model, from the CPU that loaded it to an NPU, a layer at a time: no weight is held three times."""

from __future__ import annotations

from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from glmfuse.ascend.installed import is_loaded
from glmfuse.errors import UnavailableError
from glmfuse.quantization.modules.experts import PROJECTIONS, QuantizedExperts, merged_name
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.npu.loaded import LOADED
from glmfuse.quantization.npu.modules import NpuExperts, NpuLinear, as_parameter
from glmfuse.quantization.npu.place import place
from glmfuse.quantization.prepare.layers import W8A8, Int8, Layer, in_dtype

M = TypeVar("M", bound=nn.Module)

INPUTS_SCALES: Final = ("factor", "offset", "inverse")


def to_npu(model: M, device: str | torch.device = "npu", nz: bool = True) -> M:
    """The model with its quantised layers prepared and on the device, and the rest of it moved there.

    Layers of the model are replaced as they go; the model is the one that was given. `model.to("npu")` alone keeps
    the layers of a CPU, whose plain operators an NPU has to emulate. nz: weights lie in NZ, as the products of int8
    experts need them; torch_npu is told to allow that.

    Raises:
        UnavailableError: torch_npu is not loaded.
        QuantizationError: a layer cannot be prepared, or is FP8 on a chip without it; it is named.
    """
    if not is_loaded():
        raise UnavailableError("device", str(device), "torch_npu is not imported in this process")
    if nz:
        torch.npu.config.allow_internal_format = True  # type: ignore[attr-defined]
    _Moving(torch.device(device), _dtype_of(model), nz).layers_of(model)
    return model.to(device)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """What the model's activations are: the dtype of its first parameter in 16 bits."""
    dtypes = (parameter.dtype for parameter in model.parameters())
    return next((dtype for dtype in dtypes if dtype in (torch.bfloat16, torch.float16)), torch.bfloat16)


class _Moving:
    """One pass over a model. What several layers share, as q, k and v do their input scales, is moved once."""

    def __init__(self, device: torch.device, dtype: torch.dtype, nz: bool) -> None:
        self.device, self.dtype, self.nz = device, dtype, nz
        self.there: dict[int, tuple[Tensor, Tensor]] = {}

    def layers_of(self, parent: nn.Module) -> None:
        """Replace every quantised layer below."""
        for name, child in parent.named_children():
            if isinstance(child, QuantizedLinear):
                setattr(parent, name, self._linear(child))
            elif isinstance(child, QuantizedExperts):
                setattr(parent, name, self._experts(child))
            else:
                self.layers_of(child)

    def _linear(self, module: QuantizedLinear) -> NpuLinear:
        layer = self._placed(LOADED[module.kind.name](module, lambda tensor: tensor), module.name)
        if isinstance(layer, W8A8):
            layer = layer._replace(**{name: self._once(getattr(module, name)) for name in INPUTS_SCALES})
        return NpuLinear(module.kind.name, layer)

    def _experts(self, module: QuantizedExperts) -> NpuExperts:
        read = LOADED[module.kind.name]
        gate_up, down = (read(module, partial(name_in_experts, projection)) for projection in PROJECTIONS)
        down = in_dtype(down, self.dtype) if isinstance(down, Int8) else down
        return NpuExperts(module.kind.name, *(self._placed(layer, module.name) for layer in (gate_up, down)))

    def _placed(self, layer: Layer, name: str) -> Layer:
        return place(layer, self.device, name, self.nz)

    def _once(self, tensor: Tensor) -> Tensor:
        """The first is kept beside its copy, so that no other tensor gets its identity."""
        if id(tensor) not in self.there:
            self.there[id(tensor)] = tensor, as_parameter(tensor.detach().to(self.device))
        return self.there[id(tensor)][1]


def name_in_experts(projection: str, tensor: str) -> str:
    """What experts call a projection's tensor: its scales of one level are `gate_up_scale`, say."""
    return f"{projection.removesuffix('_proj')}_scale" if tensor == "scale" else merged_name(projection, tensor)
