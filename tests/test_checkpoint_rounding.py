"""The tensors of each type against the formulas in exact arithmetic: fractions, and integers in plain Python."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quantize import quantize
from glmfuse.quantization.rounding import Inputs, quantized
from glmfuse.quantization.schemes import (
    COMPRESSED_TENSORS,
    FP8_PER_TOKEN,
    SHARDS,
    W4A8_DYNAMIC,
    W8A8,
    W8A8_DYNAMIC,
    Form,
    Kind,
    Linear,
)

OUT, IN, GROUP = 6, 64, 16
COLUMN, ROW = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
ULP = Fraction(1, 2**22)
"""Two roundings of fp32 relative to a code: the quotient's, and the scale's where it is a product."""


def drawn(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows of sizes that differ, one of zeros, one with an outlier."""
    weight = torch.randn(OUT, IN) * torch.logspace(-3, 2, OUT).unsqueeze(1)
    weight[1] = 0
    weight[2, 5] = 1e3
    return weight.to(dtype)


def exact(tensor: Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in tensor.to(torch.float64).tolist()]


def of(kind: Kind, form: Form, weight: Tensor, module: str = COLUMN, bias: Tensor | None = None) -> dict[str, Tensor]:
    inputs = Inputs.between(-3.0, 5.0, torch.bfloat16) if kind is W8A8 else None
    return quantized(module, kind, form, weight, bias, inputs)


def is_nearest(weight: Tensor, codes: list[list[int]], scales: list[list[Fraction]], largest: int) -> None:
    """Every weight is within half a step of its code, and each scale's group reaches the largest code."""
    width = IN // len(scales[0])
    for row, numbers in enumerate(exact(weight)):
        for group, scale in enumerate(scales[row]):
            span = range(group * width, (group + 1) * width)
            for column in span:
                distance = abs(numbers[column] - codes[row][column] * scale)
                assert distance <= scale * (Fraction(1, 2) + largest * ULP), (row, column)
            reached = max(abs(codes[row][column]) for column in span)
            assert reached == (largest if any(numbers[column] for column in span) else 0)


def unpacked(weight: Tensor) -> list[list[int]]:
    """Bytes to two rows of int4 each: the low half is the even output, the high half the odd one."""
    rows = []
    for row in weight.tolist():
        halves = [[(value & 0xFF) >> shift & 0xF for value in row] for shift in (0, 4)]
        rows += [[half - 16 if half > 7 else half for half in part] for part in halves]
    return rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_weights_are_the_nearest_codes(dtype: torch.dtype) -> None:
    weight = drawn(dtype)
    held = of(W8A8_DYNAMIC, Form(), weight)
    is_nearest(weight, held["weight"].tolist(), exact(held["weight_scale"]), 127)
    largest = weight.to(torch.float32).abs().numpy().max(1)
    assert np.array_equal(held["weight_scale"].squeeze(1).numpy()[largest > 0], largest[largest > 0] / np.float32(127))
    assert held["weight_scale"][1] == 1, "a row of zeros"
    assert not held["weight_offset"].count_nonzero()


def test_halves_go_to_the_even_code() -> None:
    """Of scales from 1 to 99: the quotients are exact, while a rounded reciprocal would miss some halves."""
    halves = [sign * (code + 0.5) for code in range(126) for sign in (1, -1)]
    weight = torch.arange(1.0, 100).unsqueeze(1) * torch.tensor([127.0, *halves])
    assert of(W8A8_DYNAMIC, Form(), weight)["weight"].tolist() == [[127, *map(round, halves)]] * 99


def test_weights_too_small_to_divide_by_are_zero() -> None:
    """The largest of a row is a subnormal of bf16, so max / 127 is none of fp32's normal numbers."""
    weight = torch.full((2, IN), 1e-40, dtype=torch.bfloat16)
    for kind in (W8A8, W8A8_DYNAMIC, W4A8_DYNAMIC, FP8_PER_TOKEN):
        held = of(kind, Form(), weight)
        assert not held["weight"].to(torch.float32).count_nonzero()
        assert all(value.to(torch.float32).isfinite().all() for value in held.values())


@pytest.mark.parametrize("bias", [None, "drawn"])
def test_static_int8_folds_bias_and_offset(bias: str | None) -> None:
    weight, added = drawn(), torch.randn(OUT, dtype=torch.bfloat16) if bias else None
    held = of(W8A8, Form(), weight, bias=added)
    assert "bias" not in held
    offset = int(held["input_offset"])
    for row in range(OUT):
        deq_scale = Fraction(held["deq_scale"][row].item())
        wanted = -offset * sum(held["weight"][row].tolist())
        if added is not None:
            wanted += Fraction(added[row].item()) / deq_scale
        assert abs(wanted - held["quant_bias"][row].item()) <= Fraction(1, 2) + ULP * abs(wanted)
        scale = Fraction(held["input_scale"].item()) * Fraction(weight[row].abs().max().item() or 127) / 127
        assert abs(deq_scale / scale - 1) <= ULP


@pytest.mark.parametrize("bias", [False, True])
def test_a_static_layer_is_the_linear_that_it_stands_for(bias: bool) -> None:
    """Through the pattern functions: what they compute of these tensors is x w + b within a step of each operand."""
    weight, x = torch.randn(OUT, IN), torch.rand(32, IN) * 8 - 3
    added = torch.randn(OUT) if bias else None
    inputs = Inputs.between(x.min().item(), x.max().item(), torch.float32)
    held = quantized(COLUMN, W8A8, Form(), weight, added, inputs)
    codes = quantize(x, 1 / inputs.scale, inputs.offset, None, False)
    found = quant_linear(codes, held["weight"].t(), held["deq_scale"], None, held["quant_bias"], None, torch.float16)
    wanted = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    step_x, step_w = inputs.scale.item(), weight.abs().amax(1) / 127
    bound = (step_x * weight.abs().sum(1) + x.abs().sum(1, keepdim=True) * step_w + IN * step_x * step_w) / 2
    error = (found - wanted).abs()
    assert (error <= bound + wanted.abs() * 2**-10 + 1e-3).all()
    assert error.max() > 0


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (-1e-3, 1e4), (0.5, 2.0), (-2.0, -0.5), (-7.0, 7.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_static_codes_span_what_was_seen(low: float, high: float, dtype: torch.dtype) -> None:
    inputs = Inputs.between(low, high, dtype)
    scale, offset = inputs.scale.item(), inputs.offset.item()
    assert offset in range(-128, 128)
    ends = [number / scale + offset for number in (min(low, 0.0), max(high, 0.0))]
    slack = 255 * torch.finfo(dtype).eps + 0.5
    assert abs(ends[0] + 128) <= slack
    assert abs(ends[1] - 127) <= slack


def test_inputs_that_were_all_zero_have_a_scale() -> None:
    inputs = Inputs.between(0.0, 0.0, torch.bfloat16)
    assert inputs.scale.item() == 1
    assert inputs.offset.item() == -128


def test_fp8_weights_are_the_nearest_numbers() -> None:
    weight = drawn()
    held = of(FP8_PER_TOKEN, Form(COMPRESSED_TENSORS), weight)
    assert held.keys() == {"weight", "weight_scale"}
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64)
    numbers = numbers[numbers.isfinite()]
    scaled = weight.to(torch.float64) / held["weight_scale"].to(torch.float64)
    nearest = (scaled.unsqueeze(-1) - numbers).abs().amin(-1)
    error = (scaled - held["weight"].to(torch.float64)).abs()
    assert (error <= nearest + 448 * 2**-22).all()
    assert held["weight"].to(torch.float32).abs().amax(1).tolist() == [448, 0, 448, 448, 448, 448]


@pytest.mark.parametrize("group_size", [0, GROUP])
def test_int4_of_compressed_tensors(group_size: int) -> None:
    weight = drawn()
    held = of(W4A8_DYNAMIC, Form(COMPRESSED_TENSORS, "0", group_size), weight)
    is_nearest(weight, held["weight"].tolist(), exact(held["weight_scale"]), 7)
    assert held["weight_scale"].shape == (OUT, IN // group_size if group_size else 1)


@pytest.mark.parametrize("version", ["0", "1.0.0"])
@pytest.mark.parametrize("group_size", [0, GROUP])
@pytest.mark.parametrize("module", [COLUMN, ROW])
def test_int4_of_modelslim(version: str, group_size: int, module: str) -> None:
    weight = drawn()
    held = of(W4A8_DYNAMIC, Form(version=version, group_size=group_size), weight, module)
    scales = exact(held["weight_scale"])
    if group_size:
        scales = [[row[0] * second for second in exact(held["weight_scale_second"])[n]] for n, row in enumerate(scales)]
    codes = unpacked(held["weight"]) if version == "1.0.0" else held["weight"].tolist()
    is_nearest(weight, codes, scales, 7)
    if version == "1.0.0":
        check_scale_bias(held["scale_bias"], codes, scales, SHARDS if module == ROW else 1)
    else:
        assert "scale_bias" not in held


def check_scale_bias(found: Tensor, codes: list[list[int]], scales: list[list[Fraction]], shards: int) -> None:
    """8 times the sum of each shard's weights, in fractions, to the last bits of fp32."""
    assert found.shape == (OUT, shards)
    width, of_group = IN // shards, IN // len(scales[0])
    for row in range(OUT):
        for shard in range(shards):
            span = range(shard * width, (shard + 1) * width)
            terms = [8 * codes[row][column] * scales[row][column // of_group] for column in span]
            assert abs(Fraction(found[row, shard].item()) - sum(terms)) <= ULP * sum(map(abs, terms))


@pytest.mark.parametrize("form", [Form(), Form(group_size=GROUP), Form(version="0"), Form(COMPRESSED_TENSORS, "0")])
@pytest.mark.parametrize("kind", [W8A8_DYNAMIC, W4A8_DYNAMIC, W8A8])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_made_is_what_the_type_holds(kind: Kind, form: Form, bias: bool) -> None:
    made = of(kind, form, drawn(), ROW, torch.randn(OUT, dtype=torch.bfloat16) if bias else None)
    holds = kind.holds(Linear(OUT, IN, row_parallel=True, bias=bias), form)
    assert made.keys() == {name for name, held in holds.items() if not held.optional}
    for name, value in made.items():
        assert holds[name].takes(tuple(value.shape), value.dtype), name


def test_a_bias_beyond_int32_names_its_layer() -> None:
    with pytest.raises(QuantizationError, match=rf"{COLUMN}: expected a quant_bias in int32") as caught:
        of(W8A8, Form(), torch.full((OUT, IN), 1e-9), bias=torch.full((OUT,), 1e9))
    assert caught.value.problems[0].layer == COLUMN


def test_static_int8_needs_a_scale_of_its_inputs() -> None:
    with pytest.raises(QuantizationError, match=rf"{COLUMN}: expected a static scale of its inputs, found none"):
        quantized(COLUMN, W8A8, Form(), drawn(), None, None)
