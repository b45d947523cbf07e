"""float8 and int4 by plain operators on a CPU: each pattern by other arithmetic, and extremes."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import torch

from glmfuse.lowering.tolerance import SPLIT_INT4
from glmfuse.patterns import fp8_linear, fp8_quantize, split_w4_linear, w4_linear
from glmfuse.patterns.int4 import pack_int4, unpack_int4, unpack_words
from glmfuse.quantization.prepare import int4
from glmfuse.quantization.prepare.assist import assist_bias
from glmfuse.quantization.prepare.scale_word import wide_bits
from tests.test_quantised import BF16, FP16, FP32, INT8, fp32

FP8 = torch.float8_e4m3fn
TOKENS = (1, 2, 31, 32, 33, 512)


def nearest_fp8(value: Fraction) -> Fraction:
    """The nearest number of 4 significant bits (fewer below 2^-6), halves to the even one, within +-448."""
    if value == 0:
        return value
    exponent = max(-6, _exponent(abs(value)))
    step = Fraction(2) ** (exponent - 3)
    return max(Fraction(-448), min(Fraction(448), round(value / step) * step))


def _exponent(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def fractions(row: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in row.float().tolist()]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rows_of_float8_are_scaled_by_a_quotient(tokens: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, 40).mul(10.0 ** torch.randint(-3, 3, (tokens, 1))).to(dtype)
    rows, scale = fp8_quantize.function(x)
    assert (rows.dtype, scale.dtype, scale.shape) == (FP8, FP32, (tokens,))
    assert (rows.float().abs().amax(-1) == 448).all()
    for token in random.sample(range(tokens), min(tokens, 4)):
        exact = fractions(x[token])
        factor = fp32(448 / max(map(abs, exact)))
        assert fractions(rows[token]) == [nearest_fp8(fp32(value * factor)) for value in exact]
        assert Fraction(scale[token].item()) == fp32(1 / factor)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_extremes_of_rows_are_float8_numbers(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = torch.zeros(5, 16, dtype=dtype)
    x[1, 3] = info.smallest_normal / 2  # subnormal in bf16 and fp32: its factor is past the largest fp32
    x[2], x[2, 5] = torch.randn(16).to(dtype), -info.max  # one outlier
    x[3] = -info.max
    x[4] = torch.rand(16).to(dtype) + 1
    rows, scale = fp8_quantize.function(x)
    assert not rows.float().isnan().any()
    assert not scale.isnan().any()
    assert rows[0].float().tolist() == [0] * 16
    assert scale[0] == 0.0
    assert rows[1].float().count_nonzero() == 1
    assert rows[1, 3].float() == 448
    assert rows[2, 5].float() == -448
    assert rows[3].float().tolist() == [-448] * 16
    assert (scale[2:] > 0).all()


def test_every_float8_comes_back_from_its_own_row() -> None:
    """A row whose largest number is 448 is scaled by one."""
    every = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    every = every[~every.isnan()]
    rows, scale = fp8_quantize.function(every[None])
    assert torch.equal(rows[0].float(), every)
    assert scale.tolist() == [1.0]


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_product_of_float8_is_one_of_what_they_stand_for(tokens: int) -> None:
    """Few enough small integers that every sum is exact, so only scales and the last cast round."""
    x, w = torch.randint(-8, 9, (tokens, 40)).to(FP8), torch.randint(-8, 9, (40, 6)).to(FP8)
    scale, per_token, bias = torch.rand(6), torch.rand(tokens), torch.randn(6).to(BF16)
    found = fp8_linear.function(x, w, scale, per_token, bias, BF16)
    total = x.double() @ w.double()
    expected = ((total.float() * scale) * per_token[:, None] + bias.float()).to(BF16)
    assert torch.equal(found, expected)
    without = fp8_linear.function(x, w, scale, per_token, None, FP16)
    assert torch.equal(without, ((total.float() * scale) * per_token[:, None]).to(FP16))


def test_the_largest_float8_do_not_overflow_a_sum() -> None:
    x, w = torch.full((2, 12288), 448.0).to(FP8), torch.full((12288, 3), -448.0).to(FP8)
    found = fp8_linear.function(x, w, torch.full((3,), 1e-6), torch.ones(2), None, BF16)
    assert torch.allclose(found.float(), torch.tensor(-448.0 * 448 * 12288 * 1e-6), rtol=1e-2)


def test_bytes_hold_two_integers_the_even_one_low() -> None:
    packed = torch.arange(256, dtype=torch.uint8)
    values = unpack_int4(packed)
    assert values.dtype == INT8
    expected = [(half - 16 if half > 7 else half) for byte in range(256) for half in (byte % 16, byte // 16)]
    assert values.tolist() == expected
    assert torch.equal(pack_int4(values), packed)
    assert torch.equal(unpack_int4(packed.view(4, 64)), values.view(4, 128))
    assert torch.equal(unpack_words(packed.view(4, 64).view(torch.int32)), values.view(4, 128))


@pytest.mark.parametrize("groups", [1, 2, 5, 48])
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_groups_are_summed_apart_and_added_in_order(tokens: int, groups: int) -> None:
    inputs, outputs = groups * 6, 4
    x, w = torch.randint(-128, 128, (tokens, inputs), dtype=INT8), torch.randint(-8, 8, (inputs, outputs), dtype=INT8)
    scale, per_token = torch.randn(groups, outputs), torch.rand(tokens)
    bias = torch.randn(outputs)
    found = w4_linear.function(x, pack_int4(w), scale, per_token, bias, FP16)
    for token in range(min(tokens, 3)):
        for output in range(outputs):
            y = Fraction(0)
            for group in range(groups):
                places = range(group * 6, group * 6 + 6)
                total = sum(int(x[token, place]) * int(w[place, output]) for place in places)
                y = fp32(y + fp32(total * Fraction(scale[group, output].item())))
            y = fp32(y * Fraction(per_token[token].item()))
            exact = fp32(y + Fraction(bias[output].item()))
            assert found[token, output] == torch.tensor(float(exact)).to(FP16)


def test_the_most_that_a_group_sums_is_exact() -> None:
    x, w = torch.full((3, 12288), -128, dtype=INT8), torch.full((12288, 2), -8, dtype=INT8)
    found = w4_linear.function(x, pack_int4(w), torch.ones(1, 2), torch.full((3,), 2.0**-12), None, BF16)
    assert found.tolist() == [[3072.0, 3072.0]] * 3


def test_scales_of_groups_are_not_one_of_channels() -> None:
    x, w = torch.randint(-128, 128, (3, 32), dtype=INT8), torch.randint(0, 256, (32, 4), dtype=torch.uint8)
    one = torch.rand(1, 8)
    per_token = torch.rand(3)
    by_channel = w4_linear.function(x, w, one, per_token, None, BF16)
    by_group = w4_linear.function(x, w, one.expand(4, 8), per_token, None, BF16)
    assert torch.allclose(by_channel.float(), by_group.float(), rtol=1e-2, atol=1e-2)
    unlike = w4_linear.function(x, w, torch.rand(4, 8), per_token, None, BF16)
    assert not torch.allclose(by_channel.float(), unlike.float(), rtol=1e-2, atol=1e-2)


def half_of(value: Fraction) -> Fraction:
    """The nearest fp16 number."""
    return Fraction(torch.tensor(float(value)).to(FP16).item())


def split_layer(inputs: int, outputs: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int4 weights as int8, and scales in groups, of which fp16 holds the products."""
    return torch.randint(-8, 8, (inputs, outputs), dtype=INT8), torch.rand(groups, outputs) * 1e-2 + 1e-3


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_halves_of_rows_leave_as_fp16_and_are_joined(groups: int) -> None:
    inputs, outputs = groups * 6, 8
    rows, per_token = torch.randint(-128, 128, (3, inputs), dtype=INT8), torch.rand(3)
    values, scale = split_layer(inputs, outputs, groups)
    assist = torch.randn(outputs)
    words = int4.pack_words(values), wide_bits(scale)
    found = split_w4_linear.function(rows, *words, assist, per_token, FP16)
    for token, output in itertools.product(range(3), range(outputs)):
        parts = [Fraction(0), Fraction(0)]
        for group in range(groups):
            places = range(group * 6, group * 6 + 6)
            numbers = [(int(rows[token, place]), int(values[place, output])) for place in places]
            totals = (sum(x // 16 * w for x, w in numbers), sum((x % 16 - 8) * w for x, w in numbers))
            left = (half_of(fp32(total * Fraction(scale[group, output].item()))) for total in totals)
            parts = [fp32(part + one) for part, one in zip(parts, left, strict=True)]
        y = fp32(fp32(16 * parts[0] + parts[1]) + Fraction(assist[output].item()))
        exact = fp32(y * Fraction(per_token[token].item()))
        assert found[token, output] == torch.tensor(float(exact)).to(FP16)


@pytest.mark.parametrize("groups", [1, 4])
def test_with_its_own_sums_a_split_layer_is_the_whole_one(groups: int) -> None:
    """And with others it is not, which no graph could show: so they are an argument."""
    rows, per_token = torch.randint(-128, 128, (33, 512), dtype=INT8), torch.rand(33) * 0.1
    values, scale = split_layer(512, 16, groups)
    words, sums = (int4.pack_words(values), wide_bits(scale)), assist_bias(values, scale)
    whole = w4_linear.function(rows, pack_int4(values), scale, per_token, None, FP32).double()

    def apart(assist: torch.Tensor) -> float:
        found = split_w4_linear.function(rows, *words, assist, per_token, FP32).double()
        return ((found - whole).norm() / whole.norm()).item()

    assert 1e-5 < apart(sums) < SPLIT_INT4
    assert apart(sums * 1.5) > 10 * SPLIT_INT4
    assert apart(torch.zeros_like(sums)) > 10 * SPLIT_INT4


def test_a_row_of_scales_is_one_group() -> None:
    rows, per_token, assist = torch.randint(-128, 128, (3, 24), dtype=INT8), torch.rand(3), torch.randn(8)
    values, scale = split_layer(24, 8, 1)
    by_rank = [
        split_w4_linear.function(rows, int4.pack_words(values), wide_bits(held), assist, per_token, BF16)
        for held in (scale, scale[0])
    ]
    assert torch.equal(*by_rank)
