"""Quantised kernels at the ends of what they meet: PyPTO's interpreter on a CPU, every pass compiled.

Nothing here ran on an NPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from glmfuse.capture import as_tuple
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.checking import distance
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.family_quant import merged
from glmfuse.lowering.pypto.launch.launch import interpret
from glmfuse.lowering.pypto.process import Mode
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from glmfuse.patterns import BY_NAME
from tests.pypto.names import TAKEN

pytestmark = [
    pytest.mark.xdist_group("pypto-kernels"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

CODED = [name for name in TAKEN if "w8a8" in name or "w4a8" in name]
WITH_ROWS = [name for name in CODED if not name.startswith("norm")]
PARTS = {"norm": ("q", "k", "v"), "swiglu": ("gate", "up"), "quant": ("gate", "up"), "router": ("gate", "up")}
ALLOWED = KERNEL_RELATIVE_L2[torch.bfloat16]


def found_of(name: str, values: dict[str, Any]) -> Any:
    return interpret(KERNELS[name].launch(ASCEND_910B, **values), Mode.COMPILE)


def numbers(result: Any) -> list[torch.Tensor]:
    return [tensor for tensor in as_tuple(result) if tensor.is_floating_point()]


def drawn(name: str, tokens: int, seed: int = 1) -> dict[str, Any]:
    return arguments(name, geometry("tiny"), tokens, torch.bfloat16, seed)


@pytest.mark.parametrize("name", CODED)
def test_rows_of_zeros_and_of_subnormals_give_numbers(name: str) -> None:
    values = drawn(name, 5)
    rows = values["x"].view(-1, values["x"].shape[-1])
    rows[1] = 0
    rows[3] = torch.where(rows[3] > 0, 9.2e-41, -9.2e-41)
    if values.get("residual") is not None:
        values["residual"].view_as(rows)[[1, 3]] = 0
    found = found_of(name, values)
    assert all(tensor.isfinite().all() for tensor in numbers(found))
    assert distance(name, found, values) <= ALLOWED


@pytest.mark.parametrize("name", ["swiglu_mlp_w8a8_dynamic", "swiglu_mlp_w4a8_dynamic"])
def test_a_row_of_zeros_stays_one(name: str) -> None:
    values = drawn(name, 5)
    values["x"][2] = 0
    found = found_of(name, values)
    assert not found[2].any()
    assert found[[0, 1, 3, 4]].any(-1).all()


@pytest.mark.parametrize("name", CODED)
def test_a_huge_number_saturates_and_does_not_wrap(name: str) -> None:
    values = drawn(name, 5)
    rows = values["x"].view(-1, values["x"].shape[-1])
    rows[0, 3], rows[4, 5] = 3.0e4, -3.0e4
    if "factor" in values:
        values["factor"] = values["factor"] * 1e9  # far beyond int32, too
    found = found_of(name, values)
    assert all(tensor.isfinite().all() for tensor in numbers(found))
    assert distance(name, found, values) <= ALLOWED


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_static_codes_beyond_int32_are_the_ends_of_int8(sign: float) -> None:
    values = drawn("quantize", 5)
    values["x"] = (values["x"].abs() + 1) * sign
    values["scale"] = values["scale"].abs() * 1e12
    assert (found_of("quantize", values) == (127 if sign > 0 else -128)).all()


@pytest.mark.parametrize("name", CODED)
def test_weights_at_the_ends_of_their_codes(name: str) -> None:
    values = drawn(name, 5)
    for key, value in values.items():
        if key.startswith("w_") and isinstance(value, torch.Tensor) and value.dtype in (torch.int8, torch.uint8):
            ends = (-128, 127) if value.dtype == torch.int8 else (0x88, 0x77)
            pick = torch.rand(value.shape) < 0.5
            values[key] = torch.where(pick, *(torch.tensor(end, dtype=value.dtype) for end in ends))
    assert distance(name, found_of(name, values), values) <= ALLOWED


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", ["norm_qkv_rope_w8a8", "swiglu_mlp_w8a8_dynamic", "router_mlp_w8a8_dynamic"])
def test_weights_are_read_as_they_are_held(name: str, held: bool) -> None:
    values = drawn(name, 5)
    if not held:
        values |= {key: value.contiguous() for key, value in values.items() if getattr(value, "ndim", 0) == 2}
    launch = KERNELS[name].launch(ASCEND_910B, **values)
    given = {value.data_ptr() for value in values.values() if isinstance(value, torch.Tensor)}
    assert all(launch.inputs[place].data_ptr() in given for place in launch.matrices), "a weight was copied"
    assert distance(name, interpret(launch, Mode.COMPILE), values) <= ALLOWED


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("name", CODED)
def test_merged_weights_give_the_bits_of_separate_ones(name: str, tokens: int) -> None:
    values = drawn(name, tokens)
    together = merged(values, PARTS[name.partition("_")[0]])
    for ours, theirs in zip(numbers(found_of(name, together)), numbers(found_of(name, values)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in CODED if name.startswith("norm")])
@pytest.mark.parametrize("without", ["residual", "norms", "biases"])
def test_every_variant_of_the_front(name: str, without: str) -> None:
    values = drawn(name, 5)
    absent = {"residual": ["residual"], "norms": ["w_q_norm", "w_k_norm"], "biases": ["b_q", "b_k", "b_v"]}[without]
    values |= {key: None for key in absent if key in values}
    assert distance(name, found_of(name, values), values) <= ALLOWED


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("tokens", [1, 33])
def test_biases_in_fp32_as_checkpoints_hold_them(tokens: int, together: bool) -> None:
    name = "norm_qkv_rope_w8a8_dynamic"
    values = drawn(name, tokens)
    values |= {key: value.float() + 1e-4 for key, value in values.items() if key.startswith("b_")}
    if together:
        values = merged(values, PARTS["norm"])
    assert distance(name, found_of(name, values), values) <= ALLOWED
    biases = {key: given for key, given in values.items() if key.startswith("b_") and given is not None}
    rounded = values | {key: given.bfloat16() for key, given in biases.items()}
    assert not torch.equal(found_of(name, values)[2], found_of(name, rounded)[2]), "a bias is read as it is stored"


@pytest.mark.parametrize("groups", [1, 2])
def test_int4_in_groups_of_the_down_projection(groups: int) -> None:
    values = arguments("swiglu_mlp_w4a8_dynamic", replace(geometry("tiny"), inter=64), 5, torch.bfloat16)
    values["s_down"] = torch.rand(groups, 64) * 1e-3 + 1e-4
    found = found_of("swiglu_mlp_w4a8_dynamic", values)
    assert distance("swiglu_mlp_w4a8_dynamic", found, values) <= ALLOWED
    values["s_down"] = values["s_down"].flip(-1)
    assert distance("swiglu_mlp_w4a8_dynamic", found, values) > ALLOWED


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 512])
@pytest.mark.parametrize("name", ["norm_qkv_rope_w8a8", "swiglu_mlp_w8a8_dynamic"])
def test_int8_blocks_have_the_bits_of_their_patterns(name: str, tokens: int) -> None:
    values = drawn(name, tokens, seed=tokens)
    expected = BY_NAME[name].function(**values)
    ours, theirs = numbers(found_of(name, values)), numbers(expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
