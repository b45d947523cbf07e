"""torch_npu's product with weights that alone are quantised.

Every keyword that says what is multiplied has its default or is given here: results that are quantised, the faster
arithmetic (`inner_precise`), bytes that are another dtype (`weight_dtype`) are no sites. Semantics: op-plugin 517f2e7,
docs/zh/custom_APIs/torch_npu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.weight_only_linear import groups_of, w4_weight_only_linear, weight_only_linear


def npu_weight_quant_batchmatmul(
    x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None
) -> Tensor:
    """By outputs, or by one scale; int8 and packed int4 alike."""
    require(groups_of(scale) == 1, "one group")
    return _product(x, w, scale, offset, bias, 0)


def npu_weight_quant_batchmatmul_in_groups(
    x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None
) -> Tensor:
    """In groups, of which the operator is told how many inputs each has."""
    require(groups_of(scale) > 1, "several groups")
    return _product(x, w, scale, offset, bias, w.shape[0] // groups_of(scale))


def _product(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None, size: int) -> Tensor:
    result: Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(
        x, w, scale, offset, bias=bias, antiquant_group_size=size, inner_precise=0
    )
    return result


NPU_WEIGHT_ONLY: tuple[Spelled, ...] = tuple(
    Spelled(made, function, ("npu::npu_weight_quant_batchmatmul",), rounds_alike=True)
    for made in (weight_only_linear, w4_weight_only_linear)
    for function in (npu_weight_quant_batchmatmul, npu_weight_quant_batchmatmul_in_groups)
)
