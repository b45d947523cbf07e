"""Norms that quantise, and products of 8-bit floats: which calls are the patterns, and which are not.

On the fake npu:0; numbers are those of the stand-ins' references, no chip's. float8 is Ascend950's: the references
assume the arithmetic of int8 there.
"""

from __future__ import annotations

import pytest
import torch
import torch_npu
from torch import Tensor

from glmfuse.patterns import dynamic_quantize, quantize, rms_norm, wide_norm_dynamic_quantize, wide_norm_quantize
from tests.offline_ascend.test_dialects import calls
from tests.offline_ascend.test_quantised import INPUTS, OUTPUTS, TOKENS, Made, drawn, traced
from tests.support.graphs import run_stages

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
npu, ascend = torch.ops.npu, torch.ops._C_ascend
EPS = 1e-5


def tensors() -> dict[str, Tensor]:
    made = {
        "residual": torch.randn(TOKENS, INPUTS).to(BF16),
        "w_norm": (torch.randn(INPUTS) * 0.2 + 1).to(BF16),
        "rows8": torch.randn(TOKENS, INPUTS).to(FP8),
        "w8": torch.randn(INPUTS, OUTPUTS).to(FP8),
    }
    return {**drawn(), **{name: value.npu() for name, value in made.items()}}


def static(t: dict[str, Tensor], **keywords: object) -> tuple[Tensor, Tensor]:
    y, _, total = npu.npu_add_rms_norm_quant(
        t["x"], t["residual"], t["w_norm"], t["scale"], t["offset"], **{"epsilon": EPS, **keywords}
    )
    return y, total


def dynamic(t: dict[str, Tensor], **keywords: object) -> tuple[Tensor, ...]:
    y, _, total, scale, _ = npu.npu_add_rms_norm_dynamic_quant(
        t["x"], t["residual"], t["w_norm"], **{"epsilon": EPS, **keywords}
    )
    return y, scale, total


def product(t: dict[str, Tensor], **keywords: object) -> Tensor:
    given = {"pertoken_scale": t["per_token"], "output_dtype": BF16, **keywords}
    return npu.npu_quant_matmul(t["rows8"], t["w8"], t["out_scale"], **given)


MEANT: dict[str, tuple[str, Made]] = {
    "divided, as vllm-ascend's pass calls it": ("wide_norm_quantize", static),
    "multiplied": ("wide_norm_quantize", lambda t: static(t, div_mode=False)),
    "no offset": (
        "wide_norm_quantize",
        lambda t: npu.npu_add_rms_norm_quant(t["x"], t["residual"], t["w_norm"], t["scale"], None)[0::2],
    ),
    "each row": ("wide_norm_dynamic_quantize", dynamic),
    "each row, by a mask": ("wide_norm_dynamic_quantize", lambda t: dynamic(t, output_mask=[True, False])),
    "nothing added": (
        "wide_norm_dynamic_quantize",
        lambda t: ascend.npu_rms_norm_dynamic_quant(t["x"], t["w_norm"], epsilon=EPS),
    ),
    "rows of fp8": ("fp8_quantize", lambda t: npu.npu_dynamic_quant(t["x"], dst_type=FP8)),
    "product of fp8": ("fp8_linear", product),
    "product of fp8, and a bias": ("fp8_linear", lambda t: product(t, bias=t["bias"])),
}
"""Calls that are a pattern's, and whose."""

OTHER: dict[str, Made] = {
    "beta": lambda t: static(t, beta=t["w_norm"]),
    "a second scale": lambda t: static(t, scales2=t["scale"]),
    "a second offset": lambda t: static(t, zero_points2=t["offset"]),
    "to another dtype": lambda t: static(t, dst_type=torch.uint8),
    "fp16": lambda t: npu.npu_add_rms_norm_quant(
        *(t[name].half() for name in ("x", "residual", "w_norm", "scale", "offset"))
    )[0::2],
    "rows with a beta": lambda t: dynamic(t, beta=t["w_norm"]),
    "smoothed": lambda t: dynamic(t, smooth_scale1=t["scale"]),
    "smoothed twice": lambda t: dynamic(t, smooth_scale1=t["scale"], smooth_scale2=t["scale"]),
    "masked the other way": lambda t: dynamic(t, output_mask=[True, True]),
    "rows of another dtype": lambda t: dynamic(t, y_dtype=FP8),
    "nothing added, a beta": lambda t: ascend.npu_rms_norm_dynamic_quant(t["x"], t["w_norm"], None, t["w_norm"]),
    "nothing added, smoothed": lambda t: ascend.npu_rms_norm_dynamic_quant(t["x"], t["w_norm"], t["scale"]),
    "rows of the other fp8": lambda t: npu.npu_dynamic_quant(t["x"], dst_type=torch.float8_e5m2),
    "rows of hifloat8": lambda t: npu.npu_dynamic_quant(t["x"], dst_type=torch_npu.hifloat8),
    "smoothed rows of fp8": lambda t: npu.npu_dynamic_quant(t["x"], smooth_scales=t["scale"], dst_type=FP8),
    "fp8 by tensor": lambda t: npu.npu_dynamic_quant(t["x"], dst_type=FP8, quant_mode="pertensor"),
    "fp8 with another largest number": lambda t: npu.npu_dynamic_quant(t["x"], dst_type=FP8, dst_type_max=15.0),
    "product of fp8 in fp32": lambda t: product(t, output_dtype=torch.float32),
    "product of fp8 without scales of rows": lambda t: product(t, pertoken_scale=None),
    "product of fp8 in groups": lambda t: product(t, group_sizes=[0, 0, 32]),
    "product of the other fp8": lambda t: npu.npu_quant_matmul(
        t["rows8"].to(torch.float8_e5m2), t["w8"], t["out_scale"], pertoken_scale=t["per_token"], output_dtype=BF16
    ),
}
"""Calls that differ from a pattern's in what one keyword or the form of one argument means."""


@pytest.mark.parametrize("name", MEANT)
def test_a_call_that_means_the_pattern_is_found(name: str) -> None:
    expected, function = MEANT[name]
    assert dict(run_stages(traced(function, tensors())).count()) == {expected: 1}


@pytest.mark.parametrize("name", OTHER)
def test_a_call_that_means_something_else_is_not_mistaken(name: str) -> None:
    module = traced(OTHER[name], tensors())
    before = calls(module)
    assert not run_stages(module).count()
    assert calls(module) == before


def test_a_norm_that_is_rounded_first_is_another_function() -> None:
    """Of the same numbers, in the patterns' own arithmetic: some steps differ, by two at most."""
    x, residual = torch.randn(64, 512).to(BF16), torch.randn(64, 512).to(BF16)
    w_norm, scale = (torch.randn(512) * 0.2 + 1).to(BF16), torch.tensor([30.0])
    rounded = rms_norm.function(x + residual, w_norm, EPS)
    kept = (
        wide_norm_quantize.function(x, residual, w_norm, scale, None, EPS, False)[0],
        wide_norm_dynamic_quantize.function(x, residual, w_norm, EPS)[0],
    )
    others = (quantize.function(rounded, scale, None, None, False), dynamic_quantize.function(rounded)[0])
    for ours, theirs in zip(kept, others, strict=True):
        apart = (ours.int() - theirs.int()).abs()
        assert 0 < (apart > 0).float().mean() < 0.3
        assert apart.max() <= 2
