"""What kernels refuse, without running one."""

from __future__ import annotations

import pytest
import torch

from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal


@pytest.mark.parametrize("name", ["rotary", "norm_qkv_rope"])
def test_a_rotary_of_neighbours_is_refused(name: str) -> None:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16)
    values.update({key: None for key in values if key.endswith("_norm") and key != "w_norm"})
    assert refusal(ASCEND_910B, KERNELS[name], name, values) is None
    reason = refusal(ASCEND_910B, KERNELS[name], name, {**values, "interleaved": True})
    assert reason == "pairs of neighbours; the kernel turns halves"
