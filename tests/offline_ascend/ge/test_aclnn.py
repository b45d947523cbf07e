"""torchair converts every kernel of `aclnn` to GE's own operators; that CANN compiles them is not shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.matching.pattern import Variant
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import VARIANTS, called, on_npu
from tests.offline_ascend.standin.ge_graph import ge_graph, operators

_EXPERTS = ["MoeInitRoutingV3", "GroupedMatmul", "SwiGlu", "GroupedMatmul", "MoeFinalizeRoutingV2"]
EXPECTED = {
    "rms_norm": ["RmsNorm"],
    "add_rms_norm": ["AddRmsNorm"],
    "rotary": ["RotaryMul"],
    "swiglu": ["SwiGlu"],
    "route_topk": ["MoeGatingTopK"],
    "attention": ["FusedInferAttentionScore"],
    "eager_attention": ["FusedInferAttentionScore"],
    "paged_attention": ["FusedInferAttentionScore"],
    "cache_update": ["ScatterNdUpdate"],
    "grouped_mlp": _EXPERTS,
    "moe": ["MoeGatingTopK", *_EXPERTS],
}
"""GE's names, without what moves and casts around them."""


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_torchair_makes_ges_fused_operators_of_it(name: str, variant: Variant) -> None:
    drawn = arguments(name, variant, torch.bfloat16, 1)
    tensors = on_npu({key: value for key, value in drawn.items() if isinstance(value, Tensor)})
    call = called(name, {key: value for key, value in drawn.items() if key not in tensors})
    found = operators(ge_graph(lambda *values: call(**dict(zip(tensors, values, strict=True))), *tensors.values()))
    fused = {operator for names in EXPECTED.values() for operator in names}
    merged = ["SwiGlu"] if name == "moe" and "w_shared_up" in variant.absent else []
    assert [operator for operator in found if operator in fused] == [*EXPECTED[name][:1], *merged, *EXPECTED[name][1:]]


def test_every_kernel_is_converted() -> None:
    assert set(EXPECTED) == set(KERNELS)
