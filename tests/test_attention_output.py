"""linear_add_rms_norm: the output projection, the residual sum and the norm after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.patterns import linear, rms_norm
from glmfuse.report.report import GraphReport
from tests.support.glm import decode_static, prefill, tiny
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

EPS = 1e-5


def fused(function: Callable[..., object], *tensors: Tensor, **options: object) -> GraphReport:
    """Fuse the graph of a function; no bit may change."""
    captured = capture(function, *tensors)[0]
    module = captured.module()
    report = run_stages(module, **options)
    expected = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), expected)
    return report


def given(*lead: int) -> tuple[Tensor, ...]:
    """Heads [*lead, 4, 16], w [32, 64], bias [32], residual [*lead, 32], w_norm [32]."""
    return (
        torch.randn(*lead, 4, 16),
        torch.randn(32, 64),
        torch.randn(32),
        torch.randn(*lead, 32),
        torch.randn(32),
    )


def layer_end(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, Tensor]:
    total = residual + F.linear(heads.flatten(-2), w, b)
    return rms_norm.function(total, w_norm, EPS), total


@pytest.mark.parametrize("lead", [(2, 5), (2, 1), (7,)], ids=str)
def test_a_bias_and_rows_of_tokens_are_taken(lead: tuple[int, ...]) -> None:
    assert dict(fused(layer_end, *given(*lead)).count("chosen")) == {"linear_add_rms_norm": 1}


def product_first(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, Tensor]:
    total = F.linear(heads.flatten(-2), w, b) + residual
    return rms_norm.function(total, w_norm, EPS), total


def two_products(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, ...]:
    """The residual is a product too, and read again, as behind the entry of an MTP layer."""
    residual = F.linear(residual, w[:, :32])
    total = residual + F.linear(heads.flatten(-2), w, b)
    return rms_norm.function(total, w_norm, EPS), total, residual


@pytest.mark.parametrize("function", [product_first, two_products])
def test_the_sum_is_taken_either_way_round(function: Callable[..., object]) -> None:
    report = fused(function, *given(2, 5))
    assert report.count("chosen")["linear_add_rms_norm"] == 1


def test_heads_that_lie_apart_give_one_product_of_all_rows() -> None:
    def from_heads(heads: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return layer_end(heads.transpose(1, 2).reshape(2, 5, 4, 16), *rest)

    heads, *rest = given(2, 5)
    report = fused(from_heads, heads.transpose(1, 2).contiguous(), *rest)
    assert report.count("chosen")["linear_add_rms_norm"] == 1


def unnormed(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of the product, not of the sum."""
    product = F.linear(heads.flatten(-2), w, b)
    return rms_norm.function(product, w_norm, EPS), residual + product


def scaled(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.add(residual, F.linear(heads.flatten(-2), w, b), alpha=2)
    return rms_norm.function(total, w_norm, EPS), total


def twice(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, Tensor]:
    """The sum has the residual twice, the norm once."""
    total = residual + F.linear(heads.flatten(-2), w, b)
    return rms_norm.function(total, w_norm, EPS), total + residual


def leaking(heads: Tensor, w: Tensor, b: Tensor, residual: Tensor, w_norm: Tensor) -> tuple[Tensor, ...]:
    """The product is an output too."""
    product = F.linear(heads.flatten(-2), w, b)
    total = residual + product
    return rms_norm.function(total, w_norm, EPS), total, product


@pytest.mark.parametrize(("function", "count"), [(unnormed, 0), (scaled, 0), (twice, 1), (leaking, 0)])
def test_other_functions_keep_their_bits(function: Callable[..., object], count: int) -> None:
    assert fused(function, *given(2, 5)).count("chosen")["linear_add_rms_norm"] == count


def test_a_last_dense_layer_keeps_its_mlp_whole() -> None:
    """Its down projection could also go with the last norm; the MLP saves more."""
    model = tiny(torch.bfloat16, num_hidden_layers=2, first_k_dense_replace=2)
    for phase in (prefill, decode_static):
        torch._dynamo.reset()
        report = run_stages(capture(model, **phase(model))[0].module())
        chosen = report.count("chosen")
        assert (chosen["swiglu_mlp"], chosen["norm_qkv_rope"], chosen["moe"]) == (2, 2, 0)
        assert (chosen["linear_add_rms_norm"], chosen["add_rms_norm"]) == (2, 1)
        lost = [row for row in report.rows() if row.pattern == "linear_add_rms_norm" and row.status == "matched"]
        assert [row.stage for row in lost] == ["OVERLAP", "OVERLAP"]


def test_without_it_the_norm_is_taken_with_the_sum_as_before() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=2)
    report = run_stages(capture(model, **decode_static(model))[0].module(), disable=("linear_add_rms_norm",))
    assert report.count("chosen")["add_rms_norm"] == 3


def test_rows_that_lie_apart_are_one_product() -> None:
    """F.linear takes a batch of products for x of these strides where its weight needs no gradient."""
    x, w = torch.randn(4, 3, 16).transpose(0, 1), torch.randn(8, 16)
    assert same_bits([linear.function(x, w, None)], [torch.mm(x.reshape(12, 16), w.t()).view(3, 4, 8)])
