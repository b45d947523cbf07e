"""torch_npu's quantising operators and quantised product.

Their keyword arguments decide what they are, so each is given here, or has its default: a site with any other is none.
Semantics: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu; roundings as the AscendC of Atlas A2 and A3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quantize import quantize


def npu_quantize(x: Tensor, scale: Tensor, offset: Tensor | None, inverse: Tensor | None, divide: bool) -> Tensor:
    """By channels of the last axis."""
    result: Tensor = torch.ops.npu.npu_quantize(x, scale, offset, torch.qint8, -1, divide)
    return result


def npu_quantize_from_front(
    x: Tensor, scale: Tensor, offset: Tensor | None, inverse: Tensor | None, divide: bool
) -> Tensor:
    """By the same axis, counted from the front; when it multiplies, the operator reads the axis otherwise."""
    require(divide, "only where it divides")
    result: Tensor = torch.ops.npu.npu_quantize(x, scale, offset, torch.qint8, x.dim() - 1, True)
    return result


def npu_dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """To int8, which is the default; row by row, with nothing smoothed."""
    rows, scale = torch.ops.npu.npu_dynamic_quant(x)
    return rows, scale


def npu_dynamic_quant_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same, asked for by name."""
    rows, scale = torch.ops.npu.npu_dynamic_quant(x, dst_type=torch.int8)
    return rows, scale


def npu_quant_matmul(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    per_token: Tensor | None,
    quant_bias: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """One bias, which is int32 and added to the products, or floating and added last.

    One public variant of the kernel multiplies the two scales first, which moves the last bit of an fp32 number
    before it is rounded; `verify` tells.
    """
    require(quant_bias is None or bias is None, "the operator has one bias")
    one = bias if quant_bias is None else quant_bias
    result: Tensor = torch.ops.npu.npu_quant_matmul(x, w, scale, pertoken_scale=per_token, bias=one, output_dtype=dtype)
    return result


NPU_QUANT: tuple[Spelled, ...] = (
    Spelled(quantize, npu_quantize, ("npu::npu_quantize",), rounds_alike=True),
    Spelled(quantize, npu_quantize_from_front, ("npu::npu_quantize",), rounds_alike=True),
    Spelled(dynamic_quantize, npu_dynamic_quant, ("npu::npu_dynamic_quant",), rounds_alike=True),
    Spelled(dynamic_quantize, npu_dynamic_quant_to_int8, ("npu::npu_dynamic_quant",), rounds_alike=True),
    Spelled(quant_linear, npu_quant_matmul, ("npu::npu_quant_matmul",), rounds_alike=True),
)
