"""torch_npu's product with weights that alone are quantised: which calls are the patterns, which are not.

Each case changes one argument. On the fake npu:0; numbers are those of the stand-ins' references, no chip's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from glmfuse import dialects
from tests.offline_ascend.test_dialects import calls
from tests.offline_ascend.test_quantised import traced
from tests.support.graphs import run_stages

BF16, FP16, INT8, INT32 = torch.bfloat16, torch.float16, torch.int8, torch.int32
npu = torch.ops.npu
dialects.load(pytest.fail)

TOKENS, INPUTS, OUTPUTS, SIZE = 5, 128, 64, 32
GROUPS = INPUTS // SIZE
Tensors = dict[str, Tensor]


def drawn() -> Tensors:
    made = {
        "x": torch.randn(TOKENS, INPUTS).to(BF16),
        "w": torch.randint(-128, 128, (INPUTS, OUTPUTS), dtype=INT8),
        "words": torch.randint(-(2**31), 2**31, (INPUTS, OUTPUTS // 8)).to(INT32),
        "bytes": torch.randint(0, 256, (INPUTS, OUTPUTS // 2)).to(torch.uint8),
        "scale": (torch.rand(OUTPUTS) * 0.01 + 1e-3).to(BF16),
        "scales": (torch.rand(GROUPS, OUTPUTS) * 0.01 + 1e-3).to(BF16),
        "offset": torch.randn(OUTPUTS).to(BF16),
        "offsets": torch.randn(GROUPS, OUTPUTS).to(BF16),
        "bias": torch.randn(OUTPUTS),
        "out_scale": torch.rand(OUTPUTS),
    }
    return {name: value.npu() for name, value in made.items()}


def by_outputs(t: Tensors, **changed: Any) -> Tensor:
    """Positions of x, weight, antiquant_scale and antiquant_offset; the rest by name."""
    given = {"x": t["x"], "w": t["w"], "scale": t["scale"], "offset": None, **changed}
    positions = [given.pop(name) for name in ("x", "w", "scale", "offset")]
    return npu.npu_weight_quant_batchmatmul(*positions, **given)


def in_groups(t: Tensors, **changed: Any) -> Tensor:
    return by_outputs(t, **{"scale": t["scales"], "antiquant_group_size": SIZE, **changed})


def static(t: Tensors) -> Tensor:
    return npu.npu_trans_quant_param(t["out_scale"])


INT4 = "w4_weight_only_linear"
MEANT: dict[str, tuple[str, Callable[[Tensors], Tensor]]] = {
    "by outputs": ("weight_only_linear", by_outputs),
    "one row of two axes": ("weight_only_linear", lambda t: by_outputs(t, scale=t["scale"][None])),
    "one scale": ("weight_only_linear", lambda t: by_outputs(t, scale=t["scale"][:1])),
    "offset": ("weight_only_linear", lambda t: by_outputs(t, offset=t["offset"])),
    "bias": ("weight_only_linear", lambda t: by_outputs(t, bias=t["bias"])),
    "offset and bias": ("weight_only_linear", lambda t: by_outputs(t, offset=t["offset"], bias=t["bias"])),
    "held the other way": ("weight_only_linear", lambda t: by_outputs(t, w=t["w"].t().contiguous().t())),
    "fp16": (
        "weight_only_linear",
        lambda t: by_outputs(t, x=t["x"].to(FP16), scale=t["scale"].to(FP16), bias=t["bias"].to(FP16)),
    ),
    "groups": ("weight_only_linear", in_groups),
    "groups, offset and bias": ("weight_only_linear", lambda t: in_groups(t, offset=t["offsets"], bias=t["bias"])),
    "int4": (INT4, lambda t: by_outputs(t, w=t["words"])),
    "int4 in groups, as vllm-ascend has linear layers": (
        INT4,
        lambda t: in_groups(t, w=t["words"], scale=t["scales"].float().to(BF16)),
    ),
    "int4 in groups with an offset, as AWQ has it": (INT4, lambda t: in_groups(t, w=t["words"], offset=t["offsets"])),
}
"""Calls that are a pattern's, and whose."""

OTHER: dict[str, Callable[[Tensors], Tensor]] = {
    "a quantised result": lambda t: by_outputs(t, quant_scale=static(t)),
    "a quantised result with an offset": lambda t: by_outputs(
        t, quant_scale=t["out_scale"], quant_offset=t["out_scale"]
    ),
    "faster arithmetic": lambda t: by_outputs(t, inner_precise=1),
    "faster arithmetic in groups": lambda t: in_groups(t, w=t["words"], inner_precise=1),
    "bytes of int4": lambda t: by_outputs(t, w=t["bytes"], weight_dtype=torch_npu.int4),
    "int8 that are said to be hifloat8": lambda t: by_outputs(t, weight_dtype=torch_npu.hifloat8),
    "groups without groups of scales": lambda t: by_outputs(t, antiquant_group_size=SIZE),
    "groups of scales without groups": lambda t: in_groups(t, antiquant_group_size=0),
    "larger groups than there are scales for": lambda t: in_groups(t, antiquant_group_size=2 * SIZE),
    "scales as int64": lambda t: by_outputs(t, x=t["x"].to(FP16), scale=static(t)),
    "an offset in int32": lambda t: by_outputs(t, offset=t["offset"].to(INT32)),
    "an offset for all beside scales of outputs": lambda t: by_outputs(t, offset=t["offset"][:1]),
    "an offset by outputs beside groups": lambda t: in_groups(t, offset=t["offset"]),
    "a bias for all": lambda t: by_outputs(t, bias=t["bias"][:1]),
    "words of inputs": lambda t: by_outputs(t, w=t["words"].t()[:, :OUTPUTS], x=t["x"][:, : OUTPUTS // 8]),
}
"""Calls that differ in what one argument means."""


@pytest.mark.parametrize("name", MEANT)
def test_a_call_that_means_the_pattern_is_found(name: str) -> None:
    expected, function = MEANT[name]
    assert dict(run_stages(traced(function, drawn())).count()) == {expected: 1}


@pytest.mark.parametrize("name", OTHER)
def test_a_call_that_means_something_else_is_not_mistaken(name: str) -> None:
    module = traced(OTHER[name], drawn())
    before = calls(module)
    assert not run_stages(module).count()
    assert calls(module) == before


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_packed_int4_is_what_is_unpacked(groups: int) -> None:
    """So that a word's eight are outputs, the first in the lowest bits; each weighs what it would as int8."""
    t = drawn()
    call = by_outputs if groups == 1 else in_groups
    nibbles = torch.stack([(t["words"].cpu() >> 4 * place) & 15 for place in range(8)], -1).flatten(-2)
    values = torch.where(nibbles > 7, nibbles - 16, nibbles).to(INT8).npu()
    assert torch.equal(call(t, w=t["words"]).cpu(), call(t, w=values).cpu())
