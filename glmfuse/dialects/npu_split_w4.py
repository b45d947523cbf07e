"""torch_npu's grouped product of int8 rows by int4 weights: a linear layer as one group, and the routed experts.

The operator is given 8 * the sums of the scaled weights, which are made outside of the graph; the patterns have them as
arguments. Semantics: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu; roundings as the AscendC of Atlas A2 and A3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from glmfuse.dialects.npu_quant_experts import (
    COUNTS,
    ENDS,
    Combine,
    by_finalize,
    by_unpermute,
    grouped,
    quantised_by_routing,
)
from glmfuse.dialects.spelled import Spelled
from glmfuse.patterns.split_w4_grouped_mlp import split_w4_grouped_mlp
from glmfuse.patterns.split_w4_linear import split_w4_linear

_NAMED: Final[dict[str, torch.dtype]] = {"dst_type": torch.int8}
_BY_DEFAULT: Final[dict[str, torch.dtype]] = {}
"""How rows are quantised to int8."""


def npu_grouped_matmul_of_one(
    x: Tensor, w: Tensor, scale: Tensor, assist: Tensor, per_token: Tensor, dtype: torch.dtype
) -> Tensor:
    """One group, told where it ends; the end is a fill, since a capture may not read the host."""
    scales = scale.unsqueeze(0)
    return grouped(x, per_token, w.unsqueeze(0), scales, _all_rows(x), dtype, assist.unsqueeze(0), ENDS)


def npu_grouped_matmul_of_one_counted(
    x: Tensor, w: Tensor, scale: Tensor, assist: Tensor, per_token: Tensor, dtype: torch.dtype
) -> Tensor:
    """One group, told how many rows it has; scales always in groups. As vllm-ascend 45f53ff760 has shared experts."""
    scales = scale.view(1, -1, scale.shape[-1])
    return grouped(x, per_token, w.unsqueeze(0), scales, _all_rows(x), dtype, assist.unsqueeze(0), COUNTS)


def _all_rows(x: Tensor) -> Tensor:
    return torch.full((1,), x.shape[0], dtype=torch.int64, device=x.device)


def _experts(name: str, to_int8: dict[str, torch.dtype], combine: Combine) -> Callable[..., Tensor]:
    def function(
        x: Tensor,
        weights: Tensor,
        ids: Tensor,
        w_gate_up: Tensor,
        s_gate_up: Tensor,
        a_gate_up: Tensor,
        w_down: Tensor,
        s_down: Tensor,
        a_down: Tensor,
    ) -> Tensor:
        given = quantised_by_routing(x.view(-1, x.shape[-1]), ids.to(torch.int32), w_gate_up.shape[0])
        both = grouped(given.rows, given.scale, w_gate_up, s_gate_up, given.counts, x.dtype, a_gate_up)
        rows, scale = torch.ops.npu.npu_dynamic_quant(torch.ops.npu.npu_swiglu(both), **to_int8)
        outputs = grouped(rows, scale, w_down, s_down, given.counts, x.dtype, a_down)
        return combine(outputs, given.places, weights).view(x.shape)

    function.__name__ = function.__qualname__ = name
    return function


_LINEARS = (npu_grouped_matmul_of_one, npu_grouped_matmul_of_one_counted)
_EXPERTS = (
    _experts("npu_int4_experts", _NAMED, by_finalize),
    _experts("npu_int4_experts_of_vllm_ascend", _BY_DEFAULT, by_unpermute),
)

NPU_SPLIT_W4: tuple[Spelled, ...] = (
    *(Spelled(split_w4_linear, linear, ("npu::npu_grouped_matmul",), rounds_alike=True) for linear in _LINEARS),
    *(
        Spelled(
            split_w4_grouped_mlp,
            experts,
            ("npu::npu_moe_init_routing_v2", "npu::npu_grouped_matmul", "npu::npu_swiglu"),
            requantises=True,
        )
        for experts in _EXPERTS
    ),
)
