"""Floating-point weights to the tensors of each type of layer.

Weights go to the nearest code by a scale that is symmetric: the largest number of a row, or of a group of its inputs,
becomes the largest code. All of it is computed in fp32. A row of zeros has scale 1, so that nothing is divided by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glmfuse.errors import Problem, QuantizationError
from glmfuse.quantization.prepare.assist import scale_bias
from glmfuse.quantization.prepare.int4 import pack_bytes
from glmfuse.quantization.prepare.static import quant_bias
from glmfuse.quantization.schemes import (
    COMPRESSED_TENSORS,
    FLOAT,
    FP8_PER_TOKEN,
    SHARDS,
    W4A8_DYNAMIC,
    W8A8,
    W8A8_DYNAMIC,
    Form,
    Kind,
    is_row_parallel,
)

INT8, INT4, FP8 = 127.0, 7.0, 448.0
"""The largest code of each, on both sides of zero; -128 and -8 are left out."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The static scale of a layer's inputs: code = round(x / scale + offset). Both [1], of the model's dtype."""

    scale: Tensor
    offset: Tensor

    @classmethod
    def between(cls, low: float, high: float, dtype: torch.dtype) -> Inputs:
        """The 256 codes spread over what was seen, and over 0, whose code is exact.

        The offset is found by the scale as dtype rounds it: a whole number from -128 to 127, exact in bf16.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = _positive(torch.tensor([(high - low) / 255])).to(dtype)
        offset = torch.round(-128 - low / scale.to(torch.float32)).clamp(-128, 127)
        return cls(scale, offset.to(dtype))


def quantized(
    module: str, kind: Kind, form: Form, weight: Tensor, bias: Tensor | None, inputs: Inputs | None
) -> dict[str, Tensor]:
    """The tensors of a layer of a type, by the names below the layer's.

    weight [out, in] and bias [out], floating; inputs: for W8A8. QuantizationError: a bias that int32 cannot hold.
    """
    tensors = _QUANTIZED[kind](_Layer(module, form, weight.to(torch.float32), bias, inputs))
    if bias is not None and kind is not W8A8:
        tensors["bias"] = bias
    return tensors


@dataclass(frozen=True, slots=True)
class _Layer:
    module: str
    form: Form
    weight: Tensor
    bias: Tensor | None
    inputs: Inputs | None


def int8_by_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, in] int8 and scales [out, 1] fp32: weight / scale, to the nearest, halves to the even one."""
    scale = _positive(_largest(weight) / INT8)
    return _nearest(weight / scale, INT8), scale


def fp8_by_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, in] float8_e4m3fn and scales [out, 1] fp32. The cast goes to the nearest, halves to the even one."""
    scale = _positive(_largest(weight) / FP8)
    return (weight / scale).clamp(-FP8, FP8).to(torch.float8_e4m3fn), scale


def int4_by_group(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes [out, in] of -7 to 7 in int8, and scales [out, groups] fp32; one group where group_size is 0."""
    grouped = weight.unflatten(1, (-1, group_size or weight.shape[1]))
    scale = _positive(_largest(grouped) / INT4)
    return _nearest(grouped / scale, INT4).flatten(1), scale.squeeze(-1)


def in_two_levels(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in] of -7 to 7 in int8, scales [out, 1] and second scales [out, groups], both fp32.

    The first scale is that of int8 by channel, the second that of a group within it; codes are rounded once, by their
    product as fp32 rounds it. Source: weight_scale and weight_scale_second in vllm-ascend's w4a8.py before efda0446db.
    """
    first = _positive(_largest(weight) / INT8)
    grouped = weight.unflatten(1, (-1, group_size))
    second = _positive(_largest(grouped) / INT4).squeeze(-1) / first
    return _nearest(grouped / (first * second).unsqueeze(-1), INT4).flatten(1), first, second


def _w8a8(layer: _Layer) -> dict[str, Tensor]:
    if layer.inputs is None:
        raise QuantizationError("W8A8", [Problem(layer.module, "a static scale of its inputs", "none")])
    codes, scale = int8_by_channel(layer.weight)
    deq_scale = layer.inputs.scale.to(torch.float32) * scale.squeeze(1)
    return {
        "weight": codes,
        "input_scale": layer.inputs.scale,
        "input_offset": layer.inputs.offset,
        "quant_bias": quant_bias(codes, layer.inputs.offset, deq_scale, layer.bias, layer.module),
        "deq_scale": deq_scale,
    }


def _w8a8_dynamic(layer: _Layer) -> dict[str, Tensor]:
    codes, scale = int8_by_channel(layer.weight)
    return {"weight": codes, "weight_scale": scale, **_offset(layer.form, scale)}


def _w4a8_dynamic(layer: _Layer) -> dict[str, Tensor]:
    form = layer.form
    if form.format == COMPRESSED_TENSORS:
        codes, scale = int4_by_group(layer.weight, form.group_size)
        return {"weight": codes, "weight_scale": scale}
    if form.group_size:
        codes, scale, second = in_two_levels(layer.weight, form.group_size)
        held = {"weight_scale_second": second, "weight_offset_second": torch.zeros_like(second)}
    else:
        (codes, scale), second, held = int4_by_group(layer.weight, 0), torch.ones(1, 1), {}
    held |= {"weight": codes, "weight_scale": scale, **_offset(form, scale)}
    if form.is_packed:
        held["weight"] = pack_bytes(codes.mT, layer.module).mT.contiguous().view(torch.int8)
        parts = SHARDS if is_row_parallel(layer.module) else 1
        held["scale_bias"] = scale_bias(codes.mT, (scale * second).mT, parts, layer.module)
    return held


def _fp8_per_token(layer: _Layer) -> dict[str, Tensor]:
    codes, scale = fp8_by_channel(layer.weight)
    return {"weight": codes, "weight_scale": scale}


def _offset(form: Form, scale: Tensor) -> dict[str, Tensor]:
    return {} if form.format == COMPRESSED_TENSORS else {"weight_offset": torch.zeros_like(scale)}


_QUANTIZED: dict[Kind, Callable[[_Layer], dict[str, Tensor]]] = {
    FLOAT: lambda layer: {"weight": layer.weight},
    W8A8: _w8a8,
    W8A8_DYNAMIC: _w8a8_dynamic,
    W4A8_DYNAMIC: _w4a8_dynamic,
    FP8_PER_TOKEN: _fp8_per_token,
}


def _largest(weight: Tensor) -> Tensor:
    return weight.abs().amax(-1, keepdim=True)


def _nearest(values: Tensor, largest: float) -> Tensor:
    return values.round().clamp(-largest, largest).to(torch.int8)


def _positive(scale: Tensor) -> Tensor:
    """1 for what is zero or too small to divide by."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
