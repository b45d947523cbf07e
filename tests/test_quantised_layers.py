"""Quantised layers as they are loaded: beside exact products of what the checkpoint holds, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint import Checkpoint
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.modules.registry import LINEARS
from tests.support.quantised import CASES, LAYERS, folder_of, quantised

TOKENS = (1, 2, 31, 32, 33)


@cache
def opened(case: str) -> Checkpoint:
    return checkpoint.open(folder_of(case))


def nibbles(packed: Tensor) -> Tensor:
    """Two outputs of each byte, the low half first, by arithmetic of integers."""
    whole = packed.long() % 256
    halves = torch.stack([whole % 16, whole // 16], 1).flatten(0, 1)
    return torch.where(halves > 7, halves - 16, halves)


def exact_weight(held: dict[str, Tensor], outputs: int) -> Tensor:
    """[out, in] in fp64: codes times scales, of each type and form."""
    codes = held["weight"]
    codes = (nibbles(codes) if codes.shape[0] == outputs // 2 else codes).double()
    scale = held["weight_scale"].double()
    if "weight_scale_second" in held:
        scale = (held["weight_scale"].float() * held["weight_scale_second"].float()).double()
    return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def rounding(kind: str, x: Tensor, held: dict[str, Tensor]) -> Tensor:
    """The most by which each number of x may be off in codes."""
    if kind == "W8A8":
        return (held["input_scale"].double() / 2).expand_as(x)
    if kind == "FP8_PER_TOKEN":  # half a step of 2^-3, or of the smallest numbers that are not normal
        return (x.abs() / 16).maximum(x.abs().amax(-1, keepdim=True) / 448 * 2**-10)
    return (x.abs().amax(-1, keepdim=True) / 127 / 2).expand_as(x)


def check_linear(name: str, layer: QuantizedLinear, found: Checkpoint, tokens: int) -> None:
    held = found.tensors(name)
    x = torch.randn(tokens, layer.sizes.inputs).to(torch.bfloat16)
    bias = held.get("bias", torch.zeros(layer.sizes.outputs)).double()
    if layer.kind.name == "W8A8":  # scales fit the rows that were seen before: stay within
        least = (-128 - held["input_offset"].float()) * held["input_scale"].float()
        most = (127 - held["input_offset"].float()) * held["input_scale"].float()
        x = x.clamp(least.item() * 0.9, most.item() * 0.9)
        weight = held["weight"].double() * (held["deq_scale"].double() / held["input_scale"].double())[:, None]
        bias = held["quant_bias"].double() + held["input_offset"].double() * held["weight"].double().sum(1)
        bias = bias * held["deq_scale"].double()
    else:
        weight = exact_weight(held, layer.sizes.outputs)
    exact = x.double() @ weight.t() + bias
    slack = 1.01  # the reciprocal of a scale is rounded to bf16, or to fp32
    allowed = slack * rounding(layer.kind.name, x.double(), held) @ weight.t().abs() + 2**-8 * exact.abs() + 1e-6
    difference = (layer(x).double() - exact).abs()
    assert layer(x).dtype == torch.bfloat16
    assert (difference <= allowed).all()
    assert (difference.norm() > allowed.norm() / 100) or tokens < 31, "rows are rounded"


@pytest.mark.parametrize("case", CASES)
def test_a_linear_is_the_product_of_what_the_checkpoint_holds(case: str) -> None:
    layers = {name: layer for name, layer in quantised(case).named_modules() if isinstance(layer, QuantizedLinear)}
    kinds = {layer.kind.name: name for name, layer in layers.items()}
    assert len(layers) == 4 * LAYERS + 3 * LAYERS
    for name in (*kinds.values(), *list(layers)[:7]):
        for tokens in TOKENS:
            check_linear(name, layers[name], opened(case), tokens)


def linear_of(found: Checkpoint, name: str) -> QuantizedLinear:
    """One layer of a checkpoint by itself."""
    made = LINEARS[found.kind_of(name).name](name, found.linear_of(name), found.form_of(name), torch.bfloat16)
    for key, value in found.tensors(name).items():
        setattr(made, key, nn.Parameter(value, requires_grad=False))
    made.after_loading()
    return made


def mlp_of(found: Checkpoint, name: str) -> Callable[[Tensor], Tensor]:
    gate, up, down = (linear_of(found, f"{name}.{projection}_proj") for projection in ("gate", "up", "down"))
    return lambda x: down(nn.functional.silu(gate(x)) * up(x))


@pytest.mark.parametrize("case", CASES)
def test_experts_are_the_layers_that_they_were_merged_of(case: str) -> None:
    name = f"model.layers.{LAYERS - 1}.mlp.experts"
    experts: Any = quantised(case).get_submodule(name)
    assert isinstance(experts, QuantizedExperts)
    alone = [mlp_of(opened(case), f"{name}.{number}") for number in range(experts.sizes.experts)]
    for tokens in TOKENS:
        x = torch.randn(tokens, experts.sizes.hidden).to(torch.bfloat16)
        ids = torch.stack([torch.randperm(len(alone))[:2] for _ in range(tokens)])
        weights = torch.rand(tokens, 2)
        each = [
            sum(w * alone[i](row[None])[0].float() for i, w in zip(*chosen, strict=True))
            for row, *chosen in zip(x, ids.tolist(), weights, strict=True)
        ]
        assert torch.equal(experts(x, ids, weights), torch.stack(each).to(torch.bfloat16))


@pytest.mark.parametrize("case", CASES)
def test_rows_of_zeros_and_outliers_give_numbers(case: str) -> None:
    x = torch.randn(5, 64).to(torch.bfloat16)
    x[0], x[1, 3], x[2] = 0, torch.finfo(torch.bfloat16).max, -torch.finfo(torch.bfloat16).max
    x[3] = torch.finfo(torch.bfloat16).smallest_normal / 4
    for layer in quantised(case).modules():
        if isinstance(layer, QuantizedLinear) and layer.sizes.inputs == 64:
            assert not layer(x).isnan().any()
            assert layer(x)[0].isfinite().all()
