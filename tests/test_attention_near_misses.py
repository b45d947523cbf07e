"""Functions one step away from attention: not taken for it, and left as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.patterns.repeat_kv import repeat_kv
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

HEADS, KV_HEADS, QUERIES, CACHED, WIDTH = 4, 2, 3, 16, 8
SCALE = WIDTH**-0.5
OURS = ("aten", "reference")


def tensors() -> dict[str, Tensor]:
    mask = torch.rand(2, 1, QUERIES, CACHED) > 0.5
    mask[..., 0] = True
    return {
        "q": torch.randn(2, HEADS, QUERIES, WIDTH).bfloat16(),
        "k": torch.randn(2, KV_HEADS, CACHED, WIDTH).bfloat16(),
        "v": torch.randn(2, KV_HEADS, CACHED, WIDTH).bfloat16(),
        "mask": mask,
    }


def heads_in_turn(x: Tensor) -> Tensor:
    """Every kv head once, then all of them again."""
    return x.repeat(1, HEADS // KV_HEADS, 1, 1)


def whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = repeat_kv(k, HEADS), repeat_kv(v, HEADS)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)


def other_order_of_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = heads_in_turn(k), heads_in_turn(v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)


def values_in_another_order(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = repeat_kv(k, HEADS), heads_in_turn(v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)


def a_mask_that_is_finite(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = repeat_kv(k, HEADS), repeat_kv(v, HEADS)
    bias = torch.where(mask, 0.0, -2.0).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def a_mask_the_other_way_round(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = repeat_kv(k, HEADS), repeat_kv(v, HEADS)
    bias = torch.where(mask, float("-inf"), 0.0).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.matmul(q, repeat_kv(k, HEADS).transpose(2, 3))


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x, dim=dim, dtype=torch.float32).to(x.dtype)


def bias_of(mask: Tensor) -> Tensor:
    return torch.where(mask, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()


def whole_eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(softmax(scores(q, k) * SCALE + bias_of(mask)), repeat_kv(v, HEADS))


def scaled_after_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(softmax((scores(q, k) + bias_of(mask)) * SCALE), repeat_kv(v, HEADS))


def over_the_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(softmax(scores(q, k) * SCALE + bias_of(mask), dim=-2), repeat_kv(v, HEADS))


def probabilities_in_half(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(scores(q, k) * SCALE + bias_of(mask), dim=-1), repeat_kv(v, HEADS))


def masked_afterwards(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(softmax(scores(q, k) * SCALE) + bias_of(mask), repeat_kv(v, HEADS))


def half_the_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.matmul(softmax(scores(q, k) * SCALE + bias_of(mask)), heads_in_turn(v))


def found(function: Callable[..., Any]) -> int:
    """How many attentions over un-repeated keys there are in it; fused or not, its value stays."""
    captured = capture(function, **tensors())[0]
    module = captured.module()
    report = run_stages(module, targets=OURS)
    before = outputs_and_writes(captured.module(), captured.arguments())
    after = outputs_and_writes(module, captured.arguments())
    assert same_bits(after[1:], before[1:])
    assert torch.allclose(after[0], before[0], atol=2e-2, equal_nan=True)
    number = sum(row.target == "aten" for row in report.rows())
    assert number or same_bits(after, before)
    return number


@pytest.mark.parametrize("function", [whole, whole_eager])
def test_it_is_found(function: Callable[..., Any]) -> None:
    assert found(function) == 1


@pytest.mark.parametrize(
    "function",
    [
        other_order_of_heads,
        values_in_another_order,
        a_mask_that_is_finite,
        a_mask_the_other_way_round,
        scaled_after_the_mask,
        over_the_queries,
        probabilities_in_half,
        masked_afterwards,
        half_the_heads,
    ],
)
def test_a_near_miss_is_not(function: Callable[..., Any]) -> None:
    assert found(function) == 0
