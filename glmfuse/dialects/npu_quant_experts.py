"""torch_npu's and vllm-ascend's operators for the routed experts in int8, in the ways in which they are put together.

Rows are sorted by expert and quantised, multiplied in groups, activated and quantised again, multiplied, and added with
their weights. Semantics: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu; roundings as the AscendC of Atlas A2 and A3.
What fuses the activation keeps fp32 from the first product to the second quantisation, and takes max / 127 for a scale.
int4 beside int8 is another formula, in `npu_split_w4`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.patterns.quant_grouped_mlp import quant_grouped_mlp

ENDS: Final = 0
COUNTS: Final = 1
"""Groups by where they end, or by how many rows they have."""

_QUANTISED: Final = 1
_AS_THEY_ARE: Final = -1
_ONE_OUTPUT: Final = 2
_GROUPED_ROWS: Final = 0
_BY_TOKEN: Final = 2


@dataclass(frozen=True, slots=True)
class Sorted:
    """Rows by expert, the scale of each, how many each expert has, and where each choice went."""

    rows: Tensor
    scale: Tensor
    counts: Tensor
    places: Tensor


Sort = Callable[[Tensor, Tensor, int], Sorted]
"""x [tokens, hidden], ids, how many experts -> rows by expert, in int8."""

Activate = Callable[[Sorted, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]
"""Rows, w_gate_up, s_gate_up, the model's dtype -> what the experts activate, in int8, and its scales."""

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows by expert, places, weights [tokens, active] -> [tokens, hidden]."""


def _routed(x: Tensor, ids: Tensor, count: int, scale: Tensor | None = None, mode: int = _AS_THEY_ARE) -> Any:
    return torch.ops.npu.npu_moe_init_routing_v2(
        x,
        ids,
        scale=scale,
        active_num=ids.shape[0] * ids.shape[1],
        expert_num=count,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        active_expert_range=[0, count],
        quant_mode=mode,
    )


def quantised_by_routing(x: Tensor, ids: Tensor, count: int) -> Sorted:
    """Routing quantises what it sorts."""
    rows, places, counts, scale = _routed(x, ids, count, mode=_QUANTISED)
    return Sorted(rows, scale, counts, places)


def quantised_before(x: Tensor, ids: Tensor, count: int) -> Sorted:
    """Routing sorts int8 rows, and their scales with them."""
    rows, scale = torch.ops.npu.npu_dynamic_quant(x)
    rows, places, counts, scale = _routed(rows, ids, count, scale)
    return Sorted(rows, scale, counts, places)


def quantised_after(x: Tensor, ids: Tensor, count: int) -> Sorted:
    """Each copy of a row is quantised by itself, which gives the same."""
    rows, places, counts, _ = _routed(x, ids, count)
    rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
    return Sorted(rows, scale, counts, places)


def grouped(
    rows: Tensor,
    scale: Tensor,
    w: Tensor,
    s: Tensor,
    groups: Tensor,
    dtype: torch.dtype,
    assist: Tensor | None = None,
    kind: int = COUNTS,
) -> Tensor:
    """Each group of rows times its expert's matrix, rounded once.  w [experts, in, out], s [experts, out].

    assist [experts, out]: what a product of int8 by int4 lacks.
    """
    result: Tensor = torch.ops.npu.npu_grouped_matmul(
        [rows],
        [w],
        bias=None if assist is None else [assist],
        scale=[s],
        per_token_scale=[scale],
        group_list=groups,
        split_item=_ONE_OUTPUT,
        group_type=_GROUPED_ROWS,
        group_list_type=kind,
        output_dtype=dtype,
    )[0]
    return result


def by_swiglu(given: Sorted, w: Tensor, s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Product, activation and quantisation apart, each rounded; the pattern rounds silu too."""
    both = grouped(given.rows, given.scale, w, s, given.counts, dtype)
    rows, scale = torch.ops.npu.npu_dynamic_quant(torch.ops.npu.npu_swiglu(both))
    return rows, scale


def by_swiglu_quant(given: Sorted, w: Tensor, s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One operator; it is told where groups end."""
    ends = given.counts.cumsum(0)
    rows, scale, _ = torch.ops.npu.npu_grouped_matmul_swiglu_quant(given.rows, w, ends, s, given.scale)
    return rows, scale


def by_swiglu_quant_v2(given: Sorted, w: Tensor, s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Its second version, told how many rows groups have."""
    rows, scale = torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(
        given.rows, [w], [s], given.scale, given.counts, group_list_type=COUNTS
    )
    return rows, scale


def by_swiglu_quant_of_vllm_ascend(given: Sorted, w: Tensor, s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """vllm-ascend's own, of weights in NZ."""
    rows, scale, _ = torch.ops._C_ascend.grouped_matmul_swiglu_quant_weight_nz(
        given.rows, w, s, given.scale, given.counts.cumsum(0)
    )
    return rows, scale


def by_dequant_swiglu_quant(given: Sorted, w: Tensor, s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sums of products as they are, undone, activated and quantised by an operator that knows the groups."""
    total = torch.ops.npu.npu_grouped_matmul(
        [given.rows],
        [w],
        group_list=given.counts,
        split_item=_ONE_OUTPUT,
        group_type=_GROUPED_ROWS,
        group_list_type=COUNTS,
        output_dtype=torch.int32,
    )[0]
    rows, scale = torch.ops.npu.npu_dequant_swiglu_quant(
        total,
        weight_scale=s,
        activation_scale=given.scale,
        group_index=given.counts,
        activate_left=True,  # its own default is the right half
        quant_mode=_QUANTISED,
    )
    return rows, scale


def by_unpermute(rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weights as the model's dtype has them; the pattern keeps fp32."""
    result: Tensor = torch.ops.npu.npu_moe_token_unpermute(rows, places, weights.to(rows.dtype))
    return result


def by_finalize(rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weights in fp32, which are taken beside bf16 alone; places are listed token by token, as routing does."""
    shares = weights if rows.dtype != torch.float16 else weights.to(rows.dtype)
    result: Tensor = torch.ops.npu.npu_moe_finalize_routing(
        rows, None, None, None, shares, places, None, drop_pad_mode=_BY_TOKEN
    )
    return result


def _spelling(name: str, sort: Sort, activate: Activate, combine: Combine) -> Callable[..., Tensor]:
    def function(
        x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, s_gate_up: Tensor, w_down: Tensor, s_down: Tensor
    ) -> Tensor:
        given = sort(x.view(-1, x.shape[-1]), ids.to(torch.int32), w_gate_up.shape[0])
        rows, scale = activate(given, w_gate_up, s_gate_up, x.dtype)
        outputs = grouped(rows, scale, w_down, s_down, given.counts, x.dtype)
        return combine(outputs, given.places, weights).view(x.shape)

    function.__name__ = function.__qualname__ = name
    return function


_PARTS: tuple[tuple[str, Sort, Activate, Combine, tuple[str, ...]], ...] = (
    ("npu_experts", quantised_by_routing, by_swiglu, by_unpermute, ()),
    ("npu_experts_quantised_before", quantised_before, by_swiglu, by_finalize, ()),
    ("npu_experts_quantised_after", quantised_after, by_swiglu, by_unpermute, ()),
    (
        "npu_experts_by_swiglu_quant",
        quantised_by_routing,
        by_swiglu_quant,
        by_finalize,
        ("npu::npu_grouped_matmul_swiglu_quant",),
    ),
    (
        "npu_experts_by_swiglu_quant_v2",
        quantised_by_routing,
        by_swiglu_quant_v2,
        by_finalize,
        ("npu::npu_grouped_matmul_swiglu_quant_v2",),
    ),
    (
        "npu_experts_by_swiglu_quant_of_vllm_ascend",
        quantised_by_routing,
        by_swiglu_quant_of_vllm_ascend,
        by_unpermute,
        ("_C_ascend::grouped_matmul_swiglu_quant_weight_nz",),
    ),
    (
        "npu_experts_by_dequant_swiglu_quant",
        quantised_by_routing,
        by_dequant_swiglu_quant,
        by_unpermute,
        ("npu::npu_dequant_swiglu_quant",),
    ),
)

NPU_QUANT_EXPERTS: tuple[Spelled, ...] = tuple(
    Spelled(
        quant_grouped_mlp,
        _spelling(name, sort, activate, combine),
        ("npu::npu_moe_init_routing_v2", "npu::npu_grouped_matmul", *ops),
        requantises=True,
    )
    for name, sort, activate, combine, ops in _PARTS
)
