"""Static scales of inputs: what `quantize` reads, and the int32 bias that undoes the offset."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glmfuse.quantization.prepare.expect import refusal, shaped

_WORD = 2**31


class InputScale(NamedTuple):
    """x * factor + offset is what becomes int8; inverse is what 1 / factor was made of.  All [in]."""

    factor: Tensor
    offset: Tensor
    inverse: Tensor


def input_scale(scale: Tensor, offset: Tensor, inputs: int, layer: str = "layer") -> InputScale:
    """The held scale of a whole tensor, for every channel: its reciprocal, its offset, and itself.

    scale [1] of the model's dtype, offset [1] of any -> [in] of scale's dtype. The reciprocal is rounded to that
    dtype: to multiply by it is not to divide. Source: vllm-ascend, w8a8_static.py.

    Raises:
        QuantizationError: they are not one number, or no positive one.
    """
    shaped(layer, "input_scale", scale, (1,), torch.bfloat16, torch.float16, torch.float32)
    shaped(layer, "input_offset", offset, (1,))
    if not scale.isfinite().all() or scale.item() <= 0:
        raise refusal(layer, "a positive input_scale", scale.item())
    every = scale.repeat(inputs)
    return InputScale(1 / every, offset.to(scale.dtype).repeat(inputs), every)


def quant_bias(weight: Tensor, offset: Tensor, deq_scale: Tensor, bias: Tensor | None, layer: str = "layer") -> Tensor:
    """bias / deq_scale - offset * sum_k(W), to the nearest integer: what is added to the int32 product.

    weight [out, in] int8, offset [1], deq_scale [out] fp32, bias [out] or None -> [out] int32. x is about
    (q - offset) * input_scale, and deq_scale is input_scale * weight_scale, so this undoes the offset. The sum of
    weights is an exact integer, the quotient fp64. Source: the formula of W8A8 above; ModelSlim's quant_bias.

    Raises:
        QuantizationError: shapes do not fit, or it is no int32.
    """
    outputs = weight.shape[0]
    shaped(layer, "deq_scale", deq_scale, (outputs,), torch.float32)
    shift = shaped(layer, "input_offset", offset, (1,)).to(torch.int64) * weight.sum(1, dtype=torch.int64)
    quotient = torch.zeros(outputs, dtype=torch.float64)
    if bias is not None:
        quotient = shaped(layer, "bias", bias, (outputs,)).to(torch.float64) / deq_scale.to(torch.float64)
    exact = (quotient - shift).round()
    if not bool((exact.abs() < _WORD).all()):
        raise refusal(layer, "a quant_bias in int32", f"{exact.abs().max().item():.3g}")
    return exact.to(torch.int32)
