"""Linear layers of each type.  x [..., in] bf16 or fp16 -> [..., out] of x's dtype.

Source: vllm-ascend 182b75e, apply of quantization/methods; of int4, its 45f53ff760. Limits and dtypes: op-plugin
517f2e7, docs/zh/custom_APIs/torch_npu of each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from glmfuse.quantization import schemes
from glmfuse.quantization.prepare.layers import W8A8, Fp8, Int4, Int8

_ONE_OUTPUT: Final = 2
_BY_ROWS: Final = 0
_ENDS: Final = 0


def w8a8(x: Tensor, layer: W8A8) -> Tensor:
    """int8 by static scales: rounded as `quantize` and `quant_linear` are."""
    rows = torch.ops.npu.npu_quantize(_rows(x), layer.factor, layer.offset, torch.qint8, -1, False)
    y = torch.ops.npu.npu_quant_matmul(rows, layer.weight, layer.deq_scale, bias=layer.quant_bias, output_dtype=x.dtype)
    return _like(y, x)


def w8a8_dynamic(x: Tensor, layer: Int8) -> Tensor:
    """int8 by row: rounded as `dynamic_quantize` and `quant_linear` are."""
    rows, per_token = torch.ops.npu.npu_dynamic_quant(_rows(x), dst_type=torch.int8)
    y = torch.ops.npu.npu_quant_matmul(
        rows, layer.weight, layer.scale, pertoken_scale=per_token, bias=layer.bias, output_dtype=x.dtype
    )
    return _like(y, x)


def w4a8_dynamic(x: Tensor, layer: Int4) -> Tensor:
    """int8 by row, times int4: a grouped product of one expert, since no other operator takes both.

    The cube multiplies two halves of each row, and each leaves it as fp16: in a graph this is `dynamic_quantize` and
    `split_w4_linear`, 0.02 percent off `w4_linear`. A bias is added to the rounded result. The group's end is a fill on
    the device: a capture may not read the host.
    """
    rows, per_token = torch.ops.npu.npu_dynamic_quant(_rows(x), dst_type=torch.int8)
    end = torch.full((1,), rows.shape[0], dtype=torch.int64, device=rows.device)
    y = grouped(
        rows, layer.weight.unsqueeze(0), layer.scale.unsqueeze(0), per_token, end, x.dtype, layer.assist.unsqueeze(0)
    )
    return _like(y if layer.bias is None else y + layer.bias.to(x.dtype), x)


def fp8_per_token(x: Tensor, layer: Fp8) -> Tensor:
    """8-bit floats by row. A bias is added to the rounded result: the operator's own is wrong there.

    Source: vllm-ascend, w8a8fp8_dynamic.py, which says so of the bias.
    """
    rows, per_token = torch.ops.npu.npu_dynamic_quant(_rows(x), dst_type=torch.float8_e4m3fn)
    y = torch.ops.npu.npu_quant_matmul(rows, layer.weight, layer.scale, pertoken_scale=per_token, output_dtype=x.dtype)
    return _like(y if layer.bias is None else y + layer.bias.to(x.dtype), x)


def grouped(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    per_token: Tensor,
    groups: Tensor,
    dtype: torch.dtype,
    assist: Tensor | None = None,
    kind: int = _ENDS,
) -> Tensor:
    """Each group of rows times its own weight, scaled by output and by row, of dtype.

    groups [experts] int64 says where each group ends (kind 0), or how many rows it has (kind 1).
    """
    result: Tensor = torch.ops.npu.npu_grouped_matmul(
        [rows],
        [weight],
        scale=[scale],
        bias=None if assist is None else [assist],
        per_token_scale=[per_token],
        group_list=groups,
        split_item=_ONE_OUTPUT,
        group_type=_BY_ROWS,
        group_list_type=kind,
        output_dtype=dtype,
    )[0]
    return result


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.view(*x.shape[:-1], y.shape[-1])


LINEARS: Final[Mapping[str, Callable[[Tensor, Any], Tensor]]] = MappingProxyType(
    {
        schemes.W8A8.name: w8a8,
        schemes.W8A8_DYNAMIC.name: w8a8_dynamic,
        schemes.W4A8_DYNAMIC.name: w4a8_dynamic,
        schemes.FP8_PER_TOKEN.name: fp8_per_token,
    }
)
"""By the name of a layer's type; each takes what `prepare.layers.LAYERS` makes for it."""
