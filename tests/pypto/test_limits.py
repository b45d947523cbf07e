"""What kernels refuse, without running one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal
from tests.pypto.names import FLOAT8, TAKEN


@pytest.mark.parametrize("name", ["rotary", "norm_qkv_rope"])
def test_a_rotary_of_neighbours_is_refused(name: str) -> None:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16)
    values.update({key: None for key in values if key.endswith("_norm") and key != "w_norm"})
    assert refusal(ASCEND_910B, KERNELS[name], name, values) is None
    reason = refusal(ASCEND_910B, KERNELS[name], name, {**values, "interleaved": True})
    assert reason == "pairs of neighbours; the kernel turns halves"


def test_only_float8_is_refused_at_tiny_sizes() -> None:
    assert set(KERNELS) - set(TAKEN) == set(FLOAT8)
    assert len(FLOAT8) == 5


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_wants_another_soc_and_says_which(name: str) -> None:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16)
    reason = refusal(ASCEND_910B, KERNELS[name], name, values)
    assert reason == f"{name} wants a SoC that multiplies float8, as Ascend950; Ascend910B has none"
    assert refusal(replace(ASCEND_910B, has_float8=True), KERNELS[name], name, values) is None


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("norm_qkv_rope_w8a8", {"s_q": torch.rand(128).bfloat16()}, "dtype torch.bfloat16 of s_q is none of"),
        (
            "norm_qkv_rope_w8a8",
            {"offset": torch.rand(64).bfloat16()},
            r"offset .* of \(64,\); the kernel",
        ),
        ("norm_qkv_rope_w8a8_dynamic", {"b_k": torch.rand(32).half()}, "dtype torch.float16 of b_k is none of"),
        ("norm_qkv_rope_w8a8_dynamic", {"b_v": torch.rand(32)}, "b_v is torch.float32, b_q torch.bfloat16; the kernel"),
        ("swiglu_mlp_w8a8_dynamic", {"s_down": torch.rand(64).bfloat16()}, "dtype torch.bfloat16 of s_down is none of"),
        ("swiglu_mlp_w4a8_dynamic", {"s_gate": torch.rand(8, 32)}, "groups of 8 inputs of w_gate are no multiples"),
        ("quantize", {"divide": True}, "the kernel multiplies"),
        ("quantize", {"offset": None}, "no offset"),
        ("quant_linear", {"scale": torch.rand(1)}, "a scale of 1 for 128 outputs"),
    ],
)
def test_what_a_quantised_kernel_does_not_read_is_refused(name: str, changed: dict[str, Any], reason: str) -> None:
    values = {**arguments(name, geometry("tiny"), 5, torch.bfloat16), **changed}
    assert re.search(reason, str(refusal(ASCEND_910B, KERNELS[name], name, values)))


def test_sizes_that_cube_cores_do_not_read_are_refused() -> None:
    values = arguments("swiglu_mlp_w8a8_dynamic", replace(geometry("tiny"), inter=20), 5, torch.bfloat16)
    reason = refusal(ASCEND_910B, KERNELS["swiglu_mlp_w8a8_dynamic"], "swiglu_mlp_w8a8_dynamic", values)
    assert reason == "20 of w_gate is no multiple of 16"
