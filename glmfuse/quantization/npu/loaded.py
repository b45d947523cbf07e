"""What a module that was loaded holds, prepared for an NPU: one function for each type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from glmfuse.quantization import schemes
from glmfuse.quantization.prepare.layers import W8A8, Fp8, Int4, Int8, Layer, int4_layer
from glmfuse.quantization.prepare.scale_word import trans_quant_param

Names = Callable[[str], str]
"""What a module calls the tensor that a linear layer has under this name."""


def _static(module: nn.Module, name_of: Names) -> W8A8:
    factor, offset, inverse, weight, deq_scale, bias = (getattr(module, name) for name in W8A8._fields)
    if factor.dtype == torch.float16:
        deq_scale = trans_quant_param(deq_scale, round_mode=1)
    return W8A8(factor, offset, inverse, weight.mT.contiguous(), deq_scale, bias)


def _int8(module: nn.Module, name_of: Names) -> Int8:
    return Int8(*_transposed(module, name_of), getattr(module, "bias", None))


def _fp8(module: nn.Module, name_of: Names) -> Fp8:
    return Fp8(*_transposed(module, name_of), getattr(module, "bias", None))


def _transposed(module: nn.Module, name_of: Names) -> tuple[Tensor, Tensor]:
    weight, scale = (getattr(module, name_of(name)) for name in ("weight", "weight_scale"))
    return weight.mT.contiguous(), scale.to(torch.float32)


def _int4(module: nn.Module, name_of: Names) -> Int4:
    packed, scale = getattr(module, name_of("weight")), getattr(module, name_of("scale"))
    given = getattr(module, name_of("scale_bias"), None)
    return int4_layer(packed, scale.to(torch.float32), given, getattr(module, "bias", None), str(module))


LOADED: Final[Mapping[str, Callable[[nn.Module, Names], Layer]]] = MappingProxyType(
    {
        schemes.W8A8.name: _static,
        schemes.W8A8_DYNAMIC.name: _int8,
        schemes.W4A8_DYNAMIC.name: _int4,
        schemes.FP8_PER_TOKEN.name: _fp8,
    }
)
"""By the name of a layer's type."""
