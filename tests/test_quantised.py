"""int8 by plain operators on a CPU: the bits of each pattern by other arithmetic, extremes, and what is no pattern."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.patterns import dynamic_quantize, quant_linear, quantize
from glmfuse.patterns.saturated import saturated
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.mutants import MEANS_THE_SAME, hold
from tests.support.mutate import mutations

PATTERNS = ("quantize", "dynamic_quantize", "quant_linear")
BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


def fp32(value: Fraction) -> Fraction:
    """A quotient of integers rounded to fp32, by way of no float arithmetic but that last conversion."""
    return Fraction(torch.tensor(float(value), dtype=torch.float64).to(FP32).item())


def nearest(value: Fraction) -> int:
    """Python's round goes to the even one of two."""
    return max(-128, min(127, round(value)))


@pytest.mark.parametrize("divide", [False, True])
def test_halves_go_to_the_even_one_and_the_ends_hold(divide: bool) -> None:
    x = (torch.arange(-2300, 2300) / 8).to(FP32)[None]
    scale, offset = torch.tensor([2.0 if divide else 0.5]), torch.tensor([float(random.randint(-9, 9))])
    found = quantize.function(x, scale, offset, None, divide)
    expected = [nearest(Fraction(value) / 2 + Fraction(offset.item())) for value in x[0].tolist()]
    assert found[0].tolist() == expected
    assert {-128, 127} <= set(expected)


def test_to_multiply_by_a_reciprocal_is_not_to_divide() -> None:
    scale = torch.rand(4096) + 0.5
    x = (torch.randint(-99, 99, (64, 4096)) + 0.5) * scale
    divided = quantize.function(x, scale, None, None, True)
    multiplied = quantize.function(x, scale.reciprocal(), None, None, False)
    assert (divided != multiplied).any()
    assert (divided.int() - multiplied.int()).abs().max() == 1
    for divide in (True, False):
        plain = capture(lambda x, s, divide=divide: saturated(x / s if divide else x * s), x, scale)[0]
        (row,) = (row for row in run_stages(plain.module()).rows() if row.is_site)
        assert (row.pattern, row.scalars) == ("quantize", {"divide": divide})


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 512])
def test_rows_are_scaled_by_a_quotient_and_undone_by_its_reciprocal(tokens: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, 48).mul(10.0 ** torch.randint(-3, 3, (tokens, 1))).to(dtype)
    rows, scale = dynamic_quantize.function(x)
    assert (rows.dtype, scale.dtype, scale.shape) == (INT8, FP32, (tokens,))
    for token in random.sample(range(tokens), min(tokens, 4)):
        exact = [Fraction(value) for value in x[token].float().tolist()]
        factor = fp32(127 / max(map(abs, exact)))
        assert rows[token].tolist() == [nearest(fp32(value * factor)) for value in exact]
        assert Fraction(scale[token].item()) == fp32(1 / factor)
    assert (rows.int().abs().amax(-1) == 127).all()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_extremes_of_rows_are_numbers_that_do_not_wrap(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = torch.zeros(5, 16, dtype=dtype)
    x[1, 3] = info.smallest_normal / 2  # subnormal in bf16 and fp32: its factor is past the largest fp32
    x[2], x[2, 5] = torch.randn(16).to(dtype), -info.max  # one outlier
    x[3] = -info.max
    x[4] = torch.rand(16).to(dtype) + 1
    rows, scale = dynamic_quantize.function(x)
    assert rows[0].tolist() == [0] * 16
    assert scale[0] == 0.0
    assert rows[1, 3] == 127
    assert rows[1].count_nonzero() == 1
    assert rows[2, 5] == -127
    assert rows[3].tolist() == [-127] * 16
    assert not scale.isnan().any()
    assert (scale[2:] > 0).all()


@pytest.mark.parametrize("inputs", [1, 2, 33, 12288])
@pytest.mark.parametrize("held", ["as read", "the other way"])
def test_the_sum_of_products_is_exact(inputs: int, held: str) -> None:
    for fill in (None, -128, 127):
        x, w = torch.randint(-128, 128, (3, inputs), dtype=INT8), torch.randint(-128, 128, (inputs, 5), dtype=INT8)
        if fill is not None:
            x, w = torch.full_like(x, -128), torch.full_like(w, fill)
        w = w.t().contiguous().t() if held == "the other way" else w
        bias = torch.randint(-(2**20), 2**20, (5,), dtype=torch.int32)
        scale, per_token = torch.rand(5) * 1e-4, torch.rand(3)
        found = quant_linear.function(x, w, scale, per_token, bias, None, BF16)
        totals = [
            [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*w.tolist(), strict=True)]
            for row in x.tolist()
        ]
        wide = (torch.tensor(totals) + bias).float() * scale * per_token[:, None]
        assert torch.equal(found, wide.to(BF16))


def test_a_floating_bias_is_added_last_and_an_int32_one_first() -> None:
    x, w = torch.randint(-128, 128, (7, 40), dtype=INT8), torch.randint(-128, 128, (40, 9), dtype=INT8)
    scale, per_token, bias = torch.rand(9) * 1e-3, torch.rand(7), torch.randn(9)
    whole = torch.randint(-999, 999, (9,), dtype=torch.int32)
    total = (x.double() @ w.double() + whole).float()
    expected = (total * scale * per_token[:, None] + bias).to(FP16)
    assert torch.equal(quant_linear.function(x, w, scale, per_token, whole, bias, FP16), expected)
    last = quant_linear.function(x, w, scale, per_token, None, bias, FP16)
    assert not torch.equal(quant_linear.function(x, w, scale, per_token, bias.int(), None, FP16), last)


def by_rows(x: Tensor, largest: Tensor, number: float) -> tuple[Tensor, Tensor]:
    """`dynamic_quantize`, where largest is that of the absolute values and the number 127."""
    factor = torch.full_like(largest, number) / largest
    return saturated(x * factor.unsqueeze(-1)), factor.reciprocal()


def by_reciprocal(x: Tensor) -> tuple[Tensor, Tensor]:
    factor = 127.0 / x.abs().amax(-1)
    return saturated(x * factor.unsqueeze(-1)), factor.reciprocal()


UNLIKE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "rounded down": lambda x, s: torch.nan_to_num((x * s).floor(), nan=0.0).clamp(-128, 127).to(INT8),
    "cut off": lambda x, s: torch.nan_to_num(x * s, nan=0.0).clamp(-128, 127).to(INT8),
    "symmetric": lambda x, s: torch.nan_to_num((x * s).round(), nan=0.0).clamp(-127, 127).to(INT8),
    "not saturated": lambda x, s: torch.nan_to_num((x * s).round(), nan=0.0).to(INT8),
    "another number for none": lambda x, s: torch.nan_to_num((x * s).round(), nan=1.0).clamp(-128, 127).to(INT8),
    "unsigned": lambda x, s: torch.nan_to_num((x * s).round(), nan=0.0).clamp(0, 255).to(torch.uint8),
    "offset after rounding": lambda x, s: (torch.nan_to_num((x * s).round(), nan=0.0) + s).clamp(-128, 127).to(INT8),
    "offset first": lambda x, s: saturated((x + s) * 0.5),
    "a scale for each row": lambda x, s: saturated(x * s[:4, None]),
    "reciprocal times 127": lambda x, s: by_reciprocal(x),
    "to 128": lambda x, s: by_rows(x, x.abs().amax(-1), 128.0),
    "not absolute": lambda x, s: by_rows(x, x.amax(-1), 127.0),
    "never zero": lambda x, s: by_rows(x, x.abs().amax(-1).clamp(min=1e-5), 127.0),
    "by tensor": lambda x, s: by_rows(x, x.abs().amax().expand(4), 127.0),
    "scale by division": lambda x, s: (by_rows(x, x.abs().amax(-1), 127.0)[0], x.abs().amax(-1) / 127.0),
}
"""Of x [4, 16] and s [16]: what is nearly a pattern."""


@pytest.mark.parametrize("name", UNLIKE)
def test_what_rounds_or_scales_otherwise_is_no_pattern(name: str) -> None:
    plain = capture(UNLIKE[name], torch.randn(4, 16) * 9, torch.rand(16) + 0.5)[0]
    assert not set(run_stages(plain.module()).count()) & set(PATTERNS)


def test_what_they_are_unlike_is_found() -> None:
    """So the cases above fail by what they change, and not by how they are written."""
    rows = capture(lambda x: by_rows(x, x.abs().amax(-1), 127.0), torch.randn(4, 16))[0]
    assert run_stages(rows.module()).count()["dynamic_quantize"] == 1
    known = capture(
        lambda x, s: torch.nan_to_num((x * s).round(), nan=0.0).clamp(-128, 127).to(INT8),
        torch.randn(4, 16),
        torch.rand(16),
    )[0]
    assert run_stages(known.module()).count()["quantize"] == 1


def layer(x: Tensor, factor: Tensor, offset: Tensor, w: Tensor, scale: Tensor, whole: Tensor, bias: Tensor) -> Any:
    """Both schemes side by side, in plain operators."""
    rows, per_token = dynamic_quantize.function(x)
    known = quantize.function(x, factor, offset, None, False)
    return (
        quant_linear.function(rows, w, scale, per_token, None, bias, BF16),
        quant_linear.function(known, w, scale, None, whole, None, BF16),
    )


HARMLESS = {kind: MEANS_THE_SAME[kind] for kind in (r"extra user of .*", r"literal 1 of aten.unsqueeze.default")}


def test_mutants_of_a_quantised_layer_are_not_mistaken() -> None:
    x = torch.randn(6, 24).to(BF16)
    factor, offset = torch.rand(24).mul(30).to(BF16), torch.randint(-9, 9, (24,)).to(BF16)
    w, scale = torch.randint(-128, 128, (24, 8), dtype=INT8), torch.rand(8) * 1e-3
    whole, bias = torch.randint(-999, 999, (8,), dtype=torch.int32), torch.randn(8).to(BF16)
    graph = capture(layer, x, factor, offset, w, scale, whole, bias)[0]
    found = run_stages(graph.module()).count()
    assert {name: found[name] for name in PATTERNS} == {"quantize": 1, "dynamic_quantize": 1, "quant_linear": 2}
    names = {node.name for node in graph.graph_module.graph.nodes}
    every = list(mutations(graph.graph_module.graph, names))
    unlike = 0
    for _, expected in hold(graph, every, HARMLESS):
        unlike += not same_bits(expected, outputs_and_writes(graph.module(), graph.arguments()))
    assert unlike > 30
