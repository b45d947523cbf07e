"""Routed experts in quantised layers on a CPU: each choice is its expert's own feed-forward, to the bit; extremes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from glmfuse.lowering.verify import difference
from glmfuse.patterns import BY_NAME
from tests.support.quantised_layer import SCHEMES, Int8, Layer, call

BF16 = torch.bfloat16
EXPERTS, HIDDEN, WIDTH, ACTIVE = 6, 24, 16, 3
PER_TOKEN = [name for name in SCHEMES if name != "w8a8"]


def drawn(scheme: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = SCHEMES[scheme].stored
    return (*made(EXPERTS, HIDDEN, 2 * WIDTH), *made(EXPERTS, WIDTH, HIDDEN))


def choices(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(tokens)])
    return torch.rand(tokens, ACTIVE), ids


def one_by_one(scheme: str, x: Tensor, weights: Tensor, ids: Tensor, held: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum of the scheme's feed-forward layer, called for each expert on all tokens."""
    w_gate_up, s_gate_up, w_down, s_down = held
    mlp: Any = BY_NAME[f"swiglu_mlp_{scheme}"]
    rows = x.view(-1, HIDDEN)
    by_expert = torch.stack(
        [mlp(rows, w_gate_up[e], s_gate_up[e], None, None, w_down[e], s_down[e]) for e in range(EXPERTS)]
    )
    chosen = torch.stack([by_expert[ids[:, a], torch.arange(len(rows))] for a in range(ACTIVE)], 1)
    return (chosen * weights.unsqueeze(-1)).sum(1).to(x.dtype).view(x.shape)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 512])
@pytest.mark.parametrize("scheme", PER_TOKEN)
def test_a_choice_is_its_experts_feed_forward(scheme: str, tokens: int) -> None:
    x = torch.randn(1, tokens, HIDDEN).to(BF16)
    weights, ids = choices(tokens)
    held = drawn(scheme)
    found = SCHEMES[scheme].experts.function(x, weights, ids, *held)
    expected = one_by_one(scheme, x, weights, ids, held)
    if scheme == "fp8_per_token":  # its sums are fp32, and a product of one row may add in another order
        assert difference(found, expected)[1] <= KERNEL_RELATIVE_L2[BF16]
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scheme", PER_TOKEN)
def test_extremes_are_numbers(scheme: str) -> None:
    x = torch.randn(1, 6, HIDDEN).to(BF16)
    x[0, 0] = 0
    x[0, 1, 5] = 3e4
    x[0, 2] = torch.finfo(BF16).smallest_normal / 4
    x[0, 3] = -300.0
    weights, ids = choices(6)
    found = SCHEMES[scheme].experts.function(x, weights, ids, *drawn(scheme))
    assert found[0, 0].count_nonzero() == 0
    assert found.isfinite().all()


@pytest.mark.parametrize("scheme", PER_TOKEN)
def test_a_token_does_not_depend_on_the_others(scheme: str) -> None:
    x, held = torch.randn(1, 9, HIDDEN).to(BF16), drawn(scheme)
    weights, ids = choices(9)
    experts = SCHEMES[scheme].experts.function
    whole = experts(x, weights, ids, *held)
    x[0, 1:] *= 100
    assert torch.equal(experts(x, weights, ids, *held)[0, 0], whole[0, 0])


def test_the_most_negative_weights_do_not_wrap() -> None:
    x = torch.full((1, 2, 4096), -3.0).to(BF16)
    w_gate_up, w_down = Int8.drawn(2, 4096, 16).fill_(-128), Int8.drawn(2, 8, 4096).fill_(-128)
    scales = torch.full((2, 16), 1e-6), torch.full((2, 4096), 1e-3)
    weights, ids = torch.ones(2, 1), torch.tensor([[0], [1]])
    found = SCHEMES["w8a8_dynamic"].experts.function(x, weights, ids, w_gate_up, scales[0], w_down, scales[1])
    wide = 3.0 * 4096 * 128e-6
    expected = -(wide * wide / (1 + 2.718281828**-wide)) * 8 * 0.128
    assert torch.allclose(found.float(), torch.tensor(expected), rtol=2e-2)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_whole_layer_has_no_extremes(scheme: str, tokens: int) -> None:
    """Rows of zeros, one outlier and subnormals through every layer of one decoder layer."""
    x, residual, cos, sin = call(1, tokens)
    x[0, 0], residual[0, 0] = 0, 0
    x[0, -1, 3] = 3e4
    x[0, tokens // 2] = torch.finfo(BF16).smallest_normal / 2
    for result in Layer(scheme)(x, residual, cos, sin):
        assert result.isfinite().all()
