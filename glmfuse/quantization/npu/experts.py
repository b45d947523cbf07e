"""Routed experts of each type: sorted by expert, multiplied in groups, and summed for each token.

x [..., hidden] bf16 or fp16, weights [tokens, active] fp32, ids [tokens, active] of experts -> x's shape and dtype.
The routing quantises int8 rows as it copies them. The calls are spellings of `quant_grouped_mlp` in
`dialects.npu_quant_experts` and, in int4, of `split_w4_grouped_mlp` in `dialects.npu_split_w4`, so that a graph that
has them is one of these patterns. Source: vllm-ascend 182b75e, ops/fused_moe of one rank. It sums by
npu_moe_token_unpermute with weights in the model's dtype; here they stay fp32, as `grouped_mlp` has them, and
npu_moe_finalize_routing takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from glmfuse.quantization import schemes
from glmfuse.quantization.npu.linear import grouped
from glmfuse.quantization.prepare.layers import Fp8, Int4, Int8

_COUNTS: Final = 1
_BY_ROW: Final = 1
_AS_THEY_ARE: Final = -1
_BY_TOKEN: Final = 2
"""`drop_pad_mode` of finalize: nothing is dropped, and places are listed token by token, as init_routing_v2 does."""


class Sorted(NamedTuple):
    """Rows by expert, where each choice of each token went, how many each expert has, and the scales of rows."""

    rows: Tensor
    places: Tensor
    counts: Tensor
    per_token: Tensor


def w8a8_dynamic(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Int8, down: Int8) -> Tensor:
    """int8. gate_up's scales are fp32, its weight is in NZ; down's scales are of `in_dtype`.

    Between the two products nothing is rounded but to int8: what `quant_grouped_mlp` rounds to x's dtype, twice,
    stays fp32, and the scale of a row is max / 127.
    """
    there = _routed(x, ids, gate_up.weight.shape[0])
    hidden, per_token = torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(
        there.rows, [gate_up.weight], [gate_up.scale], there.per_token, there.counts, group_list_type=_COUNTS
    )
    y = grouped(hidden, down.weight, down.scale, per_token, there.counts, x.dtype, kind=_COUNTS)
    return _summed(y, weights, there.places, x)


def w4a8_dynamic(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Int4, down: Int4) -> Tensor:
    """int4 weights: both products as `npu.linear.w4a8_dynamic` has its one; swiglu rounds once, not silu too."""
    there = _routed(x, ids, gate_up.weight.shape[0])
    first = _int4(there.rows, there.per_token, gate_up, there.counts, x.dtype)
    rows, per_token = torch.ops.npu.npu_dynamic_quant(torch.ops.npu.npu_swiglu(first, -1), dst_type=torch.int8)
    return _summed(_int4(rows, per_token, down, there.counts, x.dtype), weights, there.places, x)


def _int4(rows: Tensor, per_token: Tensor, layer: Int4, counts: Tensor, dtype: torch.dtype) -> Tensor:
    return grouped(rows, layer.weight, layer.scale, per_token, counts, dtype, layer.assist, _COUNTS)


def fp8_per_token(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Fp8, down: Fp8) -> Tensor:
    """8-bit floats, quantised once they are copied: the routing takes no rows of theirs."""
    there = _routed(x, ids, gate_up.weight.shape[0], quantises=False)
    first = _fp8(there.rows, gate_up, there.counts, x.dtype)
    return _summed(_fp8(torch.ops.npu.npu_swiglu(first, -1), down, there.counts, x.dtype), weights, there.places, x)


def _fp8(x: Tensor, layer: Fp8, counts: Tensor, dtype: torch.dtype) -> Tensor:
    rows, per_token = torch.ops.npu.npu_dynamic_quant(x, dst_type=torch.float8_e4m3fn)
    return grouped(rows, layer.weight, layer.scale, per_token, counts, dtype, kind=_COUNTS)


def _routed(x: Tensor, ids: Tensor, experts: int, quantises: bool = True) -> Sorted:
    """Every token copied to its experts, as int8 by row or as it is."""
    return Sorted(
        *torch.ops.npu.npu_moe_init_routing_v2(
            _rows(x),
            ids.to(torch.int32),
            active_num=ids.shape[0] * ids.shape[1],
            expert_num=experts,
            expert_tokens_num_type=_COUNTS,
            expert_tokens_num_flag=True,
            active_expert_range=[0, experts],
            quant_mode=_BY_ROW if quantises else _AS_THEY_ARE,
        )
    )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _summed(y: Tensor, weights: Tensor, places: Tensor, x: Tensor) -> Tensor:
    """The weighted sum over each token's choices, rounded once; beside fp16 rows the weights are rounded too."""
    shares = weights if x.dtype != torch.float16 else weights.to(x.dtype)
    result: Tensor = torch.ops.npu.npu_moe_finalize_routing(
        y, None, None, None, shares, places, None, drop_pad_mode=_BY_TOKEN
    )
    return result.view(x.shape)


EXPERTS: Final[Mapping[str, Callable[[Tensor, Tensor, Tensor, Any, Any], Tensor]]] = MappingProxyType(
    {
        schemes.W8A8_DYNAMIC.name: w8a8_dynamic,
        schemes.W4A8_DYNAMIC.name: w4a8_dynamic,
        schemes.FP8_PER_TOKEN.name: fp8_per_token,
    }
)
"""By the name of a layer's type."""
