"""Quantisation, and products of quantised matrices: integers exact, then scales in fp32, then one rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references import fp8
from tests.offline_ascend.standin.references.reference import Reference, Unsupported, absent, only
from tests.offline_ascend.standin.references.rounding import (
    INT4,
    by_rows,
    dtype_of,
    int4,
    int8,
    pack,
    product,
    scaled_by_rows,
    uint8,
    unpack,
)


def quantize(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> Tensor:
    """RN(x / s + z), or RN(x * s + z) when div_mode is off, saturated."""
    place = axis if div_mode or axis == -2 else -1
    x, scale = input.float(), _along(scales, input, place)
    values = x / scale if div_mode else x * scale
    if zero_points is not None:
        values = values + _along(zero_points, input, place)
    if dtype == INT4:
        return int4(values)
    to = dtype_of(dtype, torch.int8)
    if to == torch.int8:
        return int8(values)
    return uint8(values) if to == torch.uint8 else values.round().to(to)


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    if values.dim() != 1 or values.numel() == 1:
        return values.float()
    shape = [1] * like.dim()
    shape[axis] = values.numel()
    return values.float().reshape(shape)


def dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """int8 [..., n], or int4 packed [..., n / 8], and fp32 scales [...], row by row.

    group_index has the groups' last rows, cumulative, and picks the row of smooth_scales.
    """
    only("npu_dynamic_quant", quant_mode=(quant_mode, "pertoken"), dst_type_max=(dst_type_max, 0.0))
    x = input.float()
    if smooth_scales is not None:
        x = x * _smooth(smooth_scales, group_index, x)
    if fp8.is_asked_for(dst_type):
        return fp8.rows(x)
    if dst_type == INT4:
        values, scale = scaled_by_rows(x, 7.0)
        return int4(values), scale
    only("npu_dynamic_quant", dst_type=(dtype_of(dst_type, torch.int8), torch.int8))
    values, scale = by_rows(x)
    return int8(values), scale


def _smooth(scales: Tensor, ends: Tensor | None, x: Tensor) -> Tensor:
    if ends is None:
        return scales.float()
    row = torch.arange(x.shape[:-1].numel())
    return scales.float()[torch.bucketize(row, ends.long(), right=True)].reshape(x.shape)


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    y_scale: Tensor | None = None,
    **dtypes: Any,
) -> Tensor:
    """x1 [..., m, k] int8 @ x2 [k, n] int8 * scale [n] * pertoken_scale [m], then a floating bias; int8 by default.

    An int32 bias is added to the exact product. One public kernel variant multiplies the scales first.
    """
    absent("npu_quant_matmul", y_scale=y_scale, **dtypes)
    if x1.dtype == torch.int32:
        x1, x2 = unpack(x1), unpack(x2)
    total = fp8.product(x1, x2) if x1.dtype == fp8.FP8 else product(x1, x2)
    whole = bias is not None and bias.dtype == torch.int32
    if whole and bias is not None:
        total = total + bias.double()
    to = dtype_of(output_dtype, torch.int8)
    if to == torch.int32:
        return total.to(torch.int32)
    values = total.float() * plain_scale(scale)
    if pertoken_scale is not None:
        values = values * pertoken_scale.float().unsqueeze(-1)
    if bias is not None and not whole:
        values = values + bias.float()
    if offset is not None:
        values = values + offset.float()
    return int8(values) if to == torch.int8 else values.to(to)


def plain_scale(scale: Tensor) -> Tensor:
    """fp32 scales, of which an int64 scale has the bits in its lower half (`npu_trans_quant_param`)."""
    if scale.dtype != torch.int64:
        return scale.float()
    return (scale & 0xFFFFFFFF).to(torch.int32).view(torch.float32)


def trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int = 0) -> Tensor:
    """The cube's parameter word, int64: fp32 bits without the lowest 13, bit 46 set, a 9-bit offset at 37."""
    bits = scale.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if round_mode == 1:
        bits = bits + 0xFFF + ((bits >> 13) & 1)
    word = (bits & 0xFFFFE000) | (1 << 46)
    if offset is not None:
        whole = offset.round().clamp(-256, 255).to(torch.int64) & 0x1FF
        word = (word & 0x4000FFFFFFFF) | (whole << 37)
    return word


def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    """x [m, k] @ RN((weight [k, n] + offset) * scale), in fp32."""
    absent(
        "npu_weight_quant_batchmatmul", quant_scale=quant_scale, quant_offset=quant_offset, weight_dtype=weight_dtype
    )
    values = (unpack(weight) if weight.dtype == torch.int32 else weight).float()
    if antiquant_offset is not None:
        values = values + _by_group(antiquant_offset, antiquant_group_size, values)
    values = (values * _by_group(antiquant_scale, antiquant_group_size, values)).to(x.dtype)
    y = x.float() @ values.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _by_group(parameter: Tensor, size: int, weight: Tensor) -> Tensor:
    """[groups, n] spread over the rows of [k, n]."""
    if not size or parameter.numel() == 1:
        return parameter.float()
    return parameter.float().repeat_interleave(size, 0)[: weight.shape[0]]


def convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """int32 numbers of four bits, packed.  [..., n] -> [..., n / 8]."""
    if weight.shape[-1] % 8:
        raise Unsupported(f"int4 weights are packed by eight; the last axis has {weight.shape[-1]}")
    return pack(weight)


def _packed(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    return weight.new_empty(*weight.shape[:-1], weight.shape[-1] // 8)


OPS = {
    "npu_quantize": Reference(quantize),
    "npu_dynamic_quant": Reference(dynamic_quant),
    "npu_quant_matmul": Reference(quant_matmul),
    "npu_trans_quant_param": Reference(trans_quant_param),
    "npu_weight_quant_batchmatmul": Reference(weight_quant_batchmatmul),
    "npu_convert_weight_to_int4pack": Reference(convert_weight_to_int4pack, _packed),
}
