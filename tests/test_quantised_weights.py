"""Weights that alone are quantised: the patterns by other arithmetic, and how plain layers spell them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.patterns import w4_weight_only_linear, weight_only_linear
from glmfuse.patterns.int4 import pack_int4
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.test_quantised import BF16, FP16, FP32, INT8, fp32

TOKENS, INPUTS, OUTPUTS = 5, 24, 16
ONLY = ("weight_only_linear", "linear")
"""Those that have such a product to themselves; the others' traces take longer than all that is tested here."""


def drawn(dtype: torch.dtype, groups: int) -> tuple[Tensor, ...]:
    """x, w, scale, offset and bias; of one group scales are one row."""
    lead = () if groups == 1 else (groups,)
    scale, offset = torch.rand(*lead, OUTPUTS) * 0.1 + 0.01, torch.randn(*lead, OUTPUTS) * 9
    w = torch.randint(-128, 128, (INPUTS, OUTPUTS), dtype=INT8)
    return torch.randn(TOKENS, INPUTS).to(dtype), w, scale.to(dtype), offset.to(dtype), torch.randn(OUTPUTS).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_weights_are_widened_and_rounded_before_they_are_multiplied(groups: int, dtype: torch.dtype) -> None:
    """By fractions, rounded where it is said to be; the product is the only sum, and its order is not said."""
    x, w, scale, offset, bias = drawn(dtype, groups)
    size = INPUTS // groups
    rows = scale.view(groups, -1), offset.view(groups, -1)
    weight = torch.empty(INPUTS, OUTPUTS)
    for place in range(INPUTS):
        for output in range(OUTPUTS):
            s, o = (Fraction(each[place // size, output].item()) for each in rows)
            weight[place, output] = float(fp32(fp32(int(w[place, output]) + o) * s))
    exact = x.double() @ weight.to(dtype).double() + bias.double()
    found = weight_only_linear.function(x, w, scale, offset, bias)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps
    assert ((found.double() - exact).abs() <= 0.51 * unit * exact.abs() + 1e-4).all()
    unrounded = x.double() @ weight.double() + bias.double()
    assert (unrounded - exact).norm() > 1e-4 * exact.norm()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("groups", [1, 6])
def test_packed_int4_is_int8_in_less_space(groups: int, dtype: torch.dtype) -> None:
    x, _, scale, offset, bias = drawn(dtype, groups)
    values = torch.randint(-8, 8, (INPUTS, OUTPUTS), dtype=INT8)
    words = pack_int4(values).view(torch.int32)
    assert words.shape == (INPUTS, OUTPUTS // 8)
    for given in ((offset, bias), (None, bias), (offset, None), (None, None)):
        expected = weight_only_linear.function(x, values, scale, *given)
        assert torch.equal(w4_weight_only_linear.function(x, words, scale, *given), expected)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_every_int8_may_be_widened_in_half(dtype: torch.dtype) -> None:
    """So that spelling is the function; with an offset it would not be."""
    every = torch.arange(-128, 128, dtype=torch.int16).to(INT8)
    scale = torch.rand(100, 1).to(dtype)
    wide = (every.to(FP32) * scale.to(FP32)).to(dtype)
    assert torch.equal(every.to(dtype) * scale, wide)
    offset = torch.randn(100, 1).mul(9).to(dtype)
    shifted = ((every.to(FP32) + offset.to(FP32)) * scale.to(FP32)).to(dtype)
    assert not torch.equal((every.to(dtype) + offset) * scale, shifted)


def _in_groups(w: Tensor, scale: Tensor) -> Tensor:
    return (w.unflatten(0, (len(scale), -1)) * scale.unsqueeze(1)).flatten(0, 1)


Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

PLAIN: dict[str, tuple[int, Layer]] = {
    "a product": (1, lambda x, w, s, o, b: x @ (w.to(x.dtype) * s)),
    "a layer": (1, lambda x, w, s, o, b: F.linear(x, (w.to(x.dtype) * s).t(), b)),
    "widened in fp32": (1, lambda x, w, s, o, b: F.linear(x, (w.float() * s.float()).to(x.dtype).t(), b)),
    "with an offset": (1, lambda x, w, s, o, b: x @ ((w.float() + o.float()) * s.float()).to(x.dtype)),
    "in groups": (4, lambda x, w, s, o, b: x @ _in_groups(w.float(), s.float()).to(x.dtype)),
    "turned first": (1, lambda x, w, s, o, b: x @ (w.t().contiguous().t().to(x.dtype) * s)),
}
"""Plain layers of weights [in, out], with how many groups."""


@pytest.mark.parametrize("lead", [(), (2,)], ids=["rows", "a batch"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_layer_that_widens_its_weight_is_found(name: str, lead: tuple[int, ...]) -> None:
    groups, layer = PLAIN[name]
    x, *rest = drawn(BF16, groups)
    captured = capture(layer, x.expand(*lead, *x.shape).clone(), *rest)[0]
    module = captured.module()
    assert dict(run_stages(module, only=ONLY).count("chosen")) == {"weight_only_linear": 1}
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits(found, expected)


OTHER: dict[str, Layer] = {
    "outputs first": lambda x, w, s, o, b: F.linear(x, w.view(OUTPUTS, INPUTS).to(x.dtype) * s.unsqueeze(-1)),
    "scaled behind the product": lambda x, w, s, o, b: (x @ w.to(x.dtype)) * s,
    "an offset in half": lambda x, w, s, o, b: x @ ((w.to(x.dtype) + o) * s),
    "never rounded": lambda x, w, s, o, b: (x.float() @ (w.float() * s.float())).to(x.dtype),
    "a weight that is read elsewhere": lambda x, w, s, o, b: x @ (v := w.to(x.dtype) * s) + v.sum(),
}
"""Layers that are another function, or hold their weights so that no node is the argument."""


@pytest.mark.parametrize("name", OTHER)
def test_a_layer_that_does_otherwise_is_not_taken(name: str) -> None:
    captured = capture(OTHER[name], *drawn(BF16, 1))[0]
    module = captured.module()
    assert not run_stages(module, only=ONLY).count("chosen")["weight_only_linear"]
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits(found, expected)
