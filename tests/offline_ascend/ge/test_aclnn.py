"""torchair converts every kernel of `aclnn` to GE's own operators; that CANN compiles them is not shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.matching.pattern import Variant
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.ge.converted import ge_operators
from tests.offline_ascend.sites import VARIANTS, called, on_npu

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
def test_torchair_makes_ges_fused_operators_of_it(name: str, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = arguments(name, variant, torch.bfloat16, 1)
    tensors = on_npu({key: value for key, value in drawn.items() if isinstance(value, Tensor)})
    call = called(name, {key: value for key, value in drawn.items() if key not in tensors})
    found = ge_operators(call, tensors, monkeypatch)
    fused = {operator for operators in EXPECTED.values() for operator in operators}
    merged = ["SwiGlu"] if name == "moe" and "w_shared_up" in variant.absent else []
    assert [operator for operator in found if operator in fused] == [*EXPECTED[name][:1], *merged, *EXPECTED[name][1:]]


def test_every_kernel_is_converted() -> None:
    assert set(EXPECTED) == set(KERNELS)
