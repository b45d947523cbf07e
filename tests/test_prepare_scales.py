"""Scales, biases and parts of ranks: against fractions, struct's bits and the products that they belong to."""

from __future__ import annotations

import random
import struct
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.patterns import quant_linear, quantize
from glmfuse.quantization.prepare import assist, scale_word, static, two_levels
from glmfuse.quantization.schemes import SHARDS

SEEDS = range(4)
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def scales(*shape: int) -> Tensor:
    return torch.rand(shape).mul(10.0 ** torch.randint(-6, 4, shape)) + 1e-9


def bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def of_bits(word: int) -> Fraction:
    return Fraction(struct.unpack("<f", word.to_bytes(4, "little"))[0])


def int4(*shape: int) -> Tensor:
    return torch.randint(-8, 8, shape, dtype=torch.int8)


def test_a_word_of_the_fixpipe_has_19_bits_of_the_scale_and_nine_of_the_offset() -> None:
    scale, offset = scales(300), torch.randn(300) * 200
    words = scale_word.trans_quant_param(scale, offset)
    assert words.dtype == torch.int64
    for word, s, o in zip(words.tolist(), scale.tolist(), offset.tolist(), strict=True):
        whole = max(-256, min(255, round(o)))
        assert word == (bits(s) // 2**13 * 2**13) + 2**46 + (whole % 512) * 2**37
    assert torch.equal(scale_word.trans_quant_param(scale), words & ~(0x1FF << 37))


def test_a_rounded_word_is_the_nearest_of_19_bits() -> None:
    scale = torch.cat([scales(300), torch.tensor([1 + 2**-11, 1 + 3 * 2**-11])])  # the last two are halves
    for word, s in zip(scale_word.trans_quant_param(scale, round_mode=1).tolist(), scale.tolist(), strict=True):
        below = bits(s) // 2**13 * 2**13
        low, high, exact = of_bits(below), of_bits(below + 2**13), Fraction(s)
        nearest = low if exact - low < high - exact else high
        if exact - low == high - exact:
            nearest = low if below // 2**13 % 2 == 0 else high
        assert of_bits(word & 0xFFFFFFFF) == nearest


def test_the_bits_of_a_scale_are_widened_and_come_back() -> None:
    scale = torch.cat([scales(200), -scales(200)]).view(4, 100)
    words = scale_word.wide_bits(scale)
    assert words.tolist() == [[bits(value) for value in row] for row in scale.tolist()]
    assert torch.equal(scale_word.scale_of(words), scale)
    cut = scale_word.scale_of(scale_word.trans_quant_param(scale))
    assert ((cut - scale).abs() <= scale.abs() * 2**-10).all()
    assert not torch.equal(cut, scale)


def test_scales_that_are_no_fp32_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"q_proj: expected scale \[3\] of float32, found \[3\] of bfloat16"):
        scale_word.wide_bits(torch.ones(3, dtype=BF16), "q_proj")
    with pytest.raises(QuantizationError, match=r"expected offset \[3\] of float32, found \[2\]"):
        scale_word.trans_quant_param(torch.ones(3), torch.ones(2))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("experts", [(), (3,)], ids=["linear", "experts"])
def test_two_levels_of_scales_fold_into_their_product(seed: int, experts: tuple[int, ...]) -> None:
    random.seed(seed)
    groups, outputs = random.randint(1, 6), random.randint(1, 20)
    scale, second = scales(*experts, outputs, 1), scales(*experts, outputs, groups)
    folded = two_levels.fold(scale, second)
    assert folded.shape == (*experts, groups, outputs)
    for place in [(*lead, g, o) for lead in _places(experts) for g in range(groups) for o in range(outputs)]:
        *lead, g, o = place
        exact = Fraction(scale[(*lead, o, 0)].item()) * Fraction(second[(*lead, o, g)].item())
        assert abs(Fraction(folded[place].item()) - exact) <= exact / 2**24
    assert torch.equal(two_levels.fold(scale, None), scale.mT)


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [()] if not shape else [(index,) for index in range(shape[0])]


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"o_proj: expected weight_scale_second \[8, 2\], found \[7, 2\]"):
        two_levels.fold(scales(8, 1), scales(7, 2), "o_proj")
    with pytest.raises(QuantizationError, match=r"expected weight_scale \[8, 1\], found \[8, 2\]"):
        two_levels.fold(scales(8, 2), None)
    with pytest.raises(QuantizationError, match="o_proj: expected inputs in whole groups, found 48 by 5"):
        two_levels.group_size(48, scales(5, 8), "o_proj")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("groups", [1, 4, 48])
@pytest.mark.parametrize("parts", [1, 4, 16])
def test_scale_bias_is_eight_times_the_sum_of_weights_and_scales(seed: int, groups: int, parts: int) -> None:
    torch.manual_seed(seed)
    inputs, outputs = 96, 5
    values, scale = int4(inputs, outputs), scales(groups, outputs)
    found = assist.scale_bias(values, scale, parts)
    assert found.shape == (outputs, parts)
    for output in range(outputs):
        terms = [
            8 * int(values[k, output]) * Fraction(scale[k * groups // inputs, output].item()) for k in range(inputs)
        ]
        for part in range(parts):
            run = terms[part * inputs // parts : (part + 1) * inputs // parts]
            assert abs(Fraction(found[output, part].item()) - sum(run)) <= sum(map(abs, run)) / 2**24
    assert torch.equal(assist.scale_bias(torch.stack([values] * 2), torch.stack([scale] * 2), parts)[1], found)


def test_the_bias_is_what_two_signed_halves_of_a_row_lack() -> None:
    x, values, scale = torch.randint(-128, 128, (7, 64), dtype=torch.int8), int4(64, 6), scales(4, 6)
    spread = scale.double().repeat_interleave(16, 0) * values.double()
    high, low = x.double().div(16).floor(), (x.to(torch.int32) & 15).double() - 8
    halves = (16 * high + low) @ spread + assist.assist_bias(values, scale).double()
    torch.testing.assert_close(halves, x.double() @ spread, rtol=1e-6, atol=1e-6 * spread.abs().sum().item())


def test_columns_of_scale_bias_add_up_to_the_whole() -> None:
    values, scale = int4(64, 6), scales(1, 6)
    columns = assist.scale_bias(values, scale, SHARDS)
    whole = assist.assist_of(columns, 6)
    torch.testing.assert_close(whole, assist.assist_bias(values, scale), rtol=1e-5, atol=0)
    assert torch.equal(assist.assist_of(columns[:, :1], 6), columns[:, 0])
    with pytest.raises(QuantizationError, match=r"down_proj: expected scale_bias \[8, 16\], found \[6, 16\]"):
        assist.assist_of(columns, 8, "down_proj")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_sixteen_columns_are_dealt_out_where_inputs_are_split(ranks: int) -> None:
    assert assist.scale_bias_columns(True, ranks) == 16 // ranks
    assert assist.scale_bias_columns(False, ranks) == 1


def test_more_ranks_than_columns_are_refused_where_inputs_are_split() -> None:
    with pytest.raises(QuantizationError, match=r"down_proj: expected at most 16 ranks .* version 1.0.0, found tp 32"):
        assist.scale_bias_columns(True, 32, "down_proj")
    with pytest.raises(QuantizationError, match=r"down_proj: expected a number of ranks .* divides 16, found 16 by 3"):
        assist.scale_bias_columns(True, 3, "down_proj")
    assert assist.scale_bias_columns(False, 32) == 1


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_a_static_scale_is_its_rounded_reciprocal_for_every_channel(dtype: torch.dtype) -> None:
    for _ in range(50):
        scale, offset = (torch.rand(1) * 0.1 + 1e-3).to(dtype), torch.randint(-128, 128, (1,), dtype=torch.int8)
        made = static.input_scale(scale, offset, 9)
        exact = torch.tensor(float(1 / Fraction(scale.item())), dtype=torch.float64).to(dtype)
        assert made.factor.tolist() == [exact.item()] * 9
        assert made.offset.tolist() == [float(offset.item())] * 9
        assert made.inverse.tolist() == [scale.item()] * 9
        assert {tensor.dtype for tensor in made} == {dtype}


@pytest.mark.parametrize("biased", [True, False])
def test_the_int32_bias_undoes_the_offset_and_adds_the_bias(biased: bool) -> None:
    weight = torch.randint(-128, 128, (6, 40), dtype=torch.int8)
    scale, offset = scales(6) * 1e-2, torch.tensor([17], dtype=torch.int8)
    bias = torch.randn(6) if biased else None
    found = static.quant_bias(weight, offset, scale, bias)
    for output, row in enumerate(weight.tolist()):
        exact = Fraction(0) if bias is None else Fraction(bias[output].item()) / Fraction(scale[output].item())
        assert found[output].item() == pytest.approx(float(exact - 17 * sum(row)), abs=0.5 + 1e-6)


def test_a_static_linear_is_the_float_one_up_to_its_roundings() -> None:
    """x quantised by scale and offset, times the weight and dequantised, with the bias that was made here."""
    x, weight = torch.rand(30, 256) * 4 - 1, torch.randint(-127, 128, (12, 256), dtype=torch.int8)
    weight_scale, bias = torch.rand(12) * 1e-2 + 1e-3, torch.randn(12)
    scale, offset = torch.tensor([5 / 255]), torch.tensor([-77.0])
    deq_scale = scale * weight_scale
    made = static.input_scale(scale, offset, 256)
    rows = quantize.function(x, made.factor, made.offset, made.inverse, False)
    whole = static.quant_bias(weight, offset, deq_scale, bias)
    found = quant_linear.function(rows, weight.t(), deq_scale, None, whole, None, FP16).double()
    exact = x.double() @ (weight * weight_scale.unsqueeze(1)).double().t() + bias.double()
    assert ((found - exact).norm() / exact.norm()).item() < 5e-3  # half a step of 5 / 255 in each x
    without = quant_linear.function(rows, weight.t(), deq_scale, None, None, None, FP16).double()
    assert ((without - exact).norm() / exact.norm()).item() > 0.1


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (torch.tensor([0.0]), "k_proj: expected a positive input_scale, found 0"),
        (torch.tensor([float("nan")]), "found nan"),
        (torch.tensor([0.1, 0.2]), r"expected input_scale \[1\] .* found \[2\]"),
        (torch.tensor([1], dtype=torch.int8), "found .* of int8"),
    ],
)
def test_what_is_no_scale_of_inputs_is_refused(scale: Tensor, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        static.input_scale(scale, torch.tensor([0], dtype=torch.int8), 8, "k_proj")


def test_a_bias_that_int32_cannot_hold_is_refused() -> None:
    weight, offset = torch.ones(2, 3, dtype=torch.int8), torch.tensor([1])
    with pytest.raises(QuantizationError, match="v_proj: expected a quant_bias in int32, found 1e"):
        static.quant_bias(weight, offset, torch.full((2,), 1e-10), torch.full((2,), 100.0), "v_proj")
