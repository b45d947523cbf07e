"""A layer of each type as an NPU's operators read it, made of the tensors that a checkpoint names.

Tensors may have a leading axis of experts. Beside weights [..., in, out], scales and biases are [..., out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor

from glmfuse.quantization import schemes
from glmfuse.quantization.prepare import int4, scale_word
from glmfuse.quantization.prepare.assist import assist_bias, assist_of
from glmfuse.quantization.prepare.expect import held, shaped
from glmfuse.quantization.prepare.static import input_scale
from glmfuse.quantization.prepare.two_levels import fold, to_fp16

Tensors = Mapping[str, Tensor]


class W8A8(NamedTuple):
    """factor, offset, inverse [in] of the model's dtype; weight [in, out] int8; deq_scale [out], quant_bias int32."""

    factor: Tensor
    offset: Tensor
    inverse: Tensor
    weight: Tensor
    deq_scale: Tensor
    quant_bias: Tensor


class Int8(NamedTuple):
    """weight [..., in, out] int8; scale [..., out] fp32, or bf16 where a product reads it so; bias [out] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


class Int4(NamedTuple):
    """weight [..., in, out / 8] int32; scale [..., out] or [..., groups, out] int64; assist [..., out] fp32; bias."""

    weight: Tensor
    scale: Tensor
    assist: Tensor
    bias: Tensor | None


class Fp8(NamedTuple):
    """weight [..., in, out] float8_e4m3fn; scale [..., out] fp32; bias [out] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


Layer = W8A8 | Int8 | Int4 | Fp8


def w8a8(tensors: Tensors, layer: str) -> W8A8:
    """A static layer.  weight [out, in] int8, input_scale, input_offset [1], deq_scale fp32, quant_bias int32 [out].

    Of a model in fp16 the scales become int64: graphs take no fp32 there. They keep 19 bits, to the nearest. Source:
    vllm-ascend, w8a8_static.py; npu_quant_matmul of op-plugin 517f2e7.
    """
    names = ("weight", "input_scale", "input_offset", "deq_scale", "quant_bias")
    weight, scale, offset, deq_scale, bias = held(layer, tensors, *names)
    outputs, inputs = shaped(layer, "weight", weight, weight.shape[-2:], torch.int8).shape
    shaped(layer, "deq_scale", deq_scale, (outputs,), torch.float32)
    shaped(layer, "quant_bias", bias, (outputs,), torch.int32)
    if scale.dtype == torch.float16:
        deq_scale = scale_word.trans_quant_param(deq_scale, round_mode=1, layer=layer)
    return W8A8(*input_scale(scale, offset, inputs, layer), weight.mT.contiguous(), deq_scale, bias)


def w8a8_dynamic(tensors: Tensors, layer: str) -> Int8:
    """A layer of rows quantised by themselves.  weight [..., out, in] int8, weight_scale [..., out, 1].

    Source: vllm-ascend, w8a8_dynamic.py; weight_offset is zero and not read.
    """
    return Int8(*_transposed(tensors, torch.int8, layer), tensors.get("bias"))


def fp8_per_token(tensors: Tensors, layer: str) -> Fp8:
    """The same in 8-bit floats.  weight [..., out, in] float8_e4m3fn, weight_scale [..., out, 1].

    Source: vllm-ascend, w8a8fp8_dynamic.py.
    """
    return Fp8(*_transposed(tensors, torch.float8_e4m3fn, layer), tensors.get("bias"))


def _transposed(tensors: Tensors, dtype: torch.dtype, layer: str) -> tuple[Tensor, Tensor]:
    weight, scale = held(layer, tensors, "weight", "weight_scale")
    shaped(layer, "weight", weight, weight.shape, dtype)
    shaped(layer, "weight_scale", scale, (*weight.shape[:-1], 1), *schemes.SCALES)
    return weight.mT.contiguous(), scale.squeeze(-1).to(torch.float32)


def w4a8_dynamic(tensors: Tensors, layer: str) -> Int4:
    """A layer of int4 weights, of ModelSlim's two versions or of compressed-tensors.

    weight [..., out, in] int8, or [..., out / 2, in] with two to a byte; weight_scale [..., out, 1], with
    weight_scale_second [..., out, groups], or weight_scale [..., out, groups] alone; scale_bias where it is held, else
    it is made. Scales of groups are rounded to fp16. Source: vllm-ascend, w4a8.py; a69ef10c3a for groups.
    """
    weight, first = held(layer, tensors, "weight", "weight_scale")
    outputs, inputs = first.shape[-2], weight.shape[-1]
    packed = int4.as_read(weight, inputs, outputs, layer)
    scale = _folded(first, tensors.get("weight_scale_second"), layer)
    shaped(layer, "scales", scale, (*weight.shape[:-2], scale.shape[-2], outputs))
    return int4_layer(packed, scale, tensors.get("scale_bias"), tensors.get("bias"), layer)


def int4_layer(packed: Tensor, scale: Tensor, scale_bias: Tensor | None, bias: Tensor | None, layer: str) -> Int4:
    """The same of what `w4_linear` reads.  packed [..., in, out / 2] uint8, scale [..., groups, out] fp32."""
    return Int4(
        int4.words(packed, layer),
        scale_word.wide_bits(scale.squeeze(-2) if scale.shape[-2] == 1 else to_fp16(scale), layer),
        _assist(scale_bias, packed, scale, layer),
        bias,
    )


def _folded(first: Tensor, second: Tensor | None, layer: str) -> Tensor:
    """[..., groups, out] fp32."""
    if second is None and first.shape[-1] > 1:
        return first.to(torch.float32).mT.contiguous()
    return fold(first, second, layer)


def _assist(given: Tensor | None, packed: Tensor, scale: Tensor, layer: str) -> Tensor:
    if given is not None:
        return assist_of(given, scale.shape[-1], layer)
    return assist_bias(int4.unpack_bytes(packed), scale, layer)


LAYERS: Final[Mapping[str, Callable[[Tensors, str], Layer]]] = MappingProxyType(
    {
        schemes.W8A8.name: w8a8,
        schemes.W8A8_DYNAMIC.name: w8a8_dynamic,
        schemes.W4A8_DYNAMIC.name: w4a8_dynamic,
        schemes.FP8_PER_TOKEN.name: fp8_per_token,
    }
)
"""By the name of a layer's type. Each raises QuantizationError where tensors are missing or do not fit."""


def in_dtype(layer: Int8, dtype: torch.dtype) -> Int8:
    """Its scales as `npu_grouped_matmul` reads them for results of this dtype: bf16 beside bf16, else fp32.

    Scales that a checkpoint holds in bf16 lose nothing. Source: the operator's table of dtypes, op-plugin 517f2e7.
    """
    return layer._replace(scale=layer.scale.to(torch.bfloat16)) if dtype == torch.bfloat16 else layer
