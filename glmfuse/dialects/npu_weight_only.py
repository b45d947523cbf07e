"""torch_npu's product with weights that alone are quantised.

Every keyword that says what is multiplied has its default or is given here: results that are quantised, the faster
arithmetic (`inner_precise`), bytes that are another dtype (`weight_dtype`) are no sites. Semantics: op-plugin 517f2e7,
docs/zh/custom_APIs/torch_npu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.patterns.weight_only_linear import groups_of, w4_weight_only_linear, weight_only_linear

_ALL_INPUTS = 0
"""The size of groups where there are none."""


def npu_weight_quant_batchmatmul(
    x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None
) -> Tensor:
    """int8 and packed int4 alike; the operator is told how many inputs a group has."""
    groups = groups_of(scale)
    size = _ALL_INPUTS if groups == 1 else w.shape[0] // groups
    result: Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(
        x, w, scale, offset, bias=bias, antiquant_group_size=size, inner_precise=0
    )
    return result


NPU_WEIGHT_ONLY: tuple[Spelled, ...] = tuple(
    Spelled(made, npu_weight_quant_batchmatmul, ("npu::npu_weight_quant_batchmatmul",), rounds_alike=True)
    for made in (weight_only_linear, w4_weight_only_linear)
)
