"""A decoder layer of each quantised scheme in plain operators on a CPU: its blocks are found, and no bit changes."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn

from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.quantised_layer import BF16, FORMS, SCHEMES, Form, Layer, call

QUANTIZE = {"w8a8": "quantize", "w8a8_dynamic": "dynamic_quantize", "fp8_per_token": "fp8_quantize"}
LINEAR = {"w8a8": "quant_linear", "w8a8_dynamic": "quant_linear", "fp8_per_token": "fp8_linear"}
EXPERTS = {"fp8_per_token": "fp8_grouped_mlp", "w4a8_dynamic": "w4_grouped_mlp"}
OTHER_FORMS = [(scheme, "merged, bare") for scheme in SCHEMES]
OTHER_FORMS += [("w8a8_dynamic", form) for form in FORMS if form not in ("separate", "merged, bare")]


@cache
def captured(scheme: str, form: Form = FORMS["separate"]) -> Captured:
    with torch.no_grad():
        return capture(Layer(scheme, form), *call())[0]


def fused(graph: Captured, **options: object) -> Counter[str]:
    """The patterns chosen, after the fused graph was held to the bits of the captured one."""
    module = graph.module()
    report = run_stages(module, **options)
    before = outputs_and_writes(graph.module(), graph.arguments())
    assert same_bits(outputs_and_writes(module, graph.arguments()), before)
    return Counter(report.count("chosen"))


def words(scheme: str) -> tuple[str, str, str]:
    """What quantises, multiplies, and routes in the scheme."""
    quantises = QUANTIZE.get(scheme, "dynamic_quantize")
    return quantises, LINEAR.get(scheme, "w4_linear"), EXPERTS.get(scheme, "quant_grouped_mlp")


def whole(scheme: str) -> dict[str, int]:
    """The blocks of a layer; `o` is a quantised layer by itself, between attention and the second norm."""
    quantises, linear, experts = words(scheme)
    mixture = {f"moe_{scheme}": 1} if scheme != "w8a8" else {f"router_mlp_{scheme}": 1, experts: 1}
    return {f"norm_qkv_rope_{scheme}": 1, quantises: 1, linear: 1, "add_rms_norm": 1, **mixture}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_is_its_blocks(scheme: str) -> None:
    assert fused(captured(scheme)) == whole(scheme)


@pytest.mark.parametrize(("scheme", "form"), OTHER_FORMS)
def test_however_it_is_written(scheme: str, form: str) -> None:
    assert fused(captured(scheme, FORMS[form])) == whole(scheme)


def test_without_a_residual_and_in_fp16() -> None:
    layer = Layer("w8a8_dynamic")._apply(lambda value: value.half() if value.dtype == BF16 else value)
    arguments = [value if value is None else value.half() for value in call(with_residual=False)]
    graph = capture(layer, *arguments)[0]
    assert fused(graph) == whole("w8a8_dynamic")
    graph = capture(Layer("w8a8"), *call(batch=1, tokens=1, with_residual=False))[0]
    assert fused(graph) == whole("w8a8")


def test_schemes_of_one_layer_may_differ() -> None:
    """As in ModelSlim's checkpoints: attention by known scales, experts by each row's own."""
    layer = Layer("w8a8")
    layer.mlp = Layer("w8a8_dynamic").mlp
    chosen = fused(capture(layer, *call())[0])
    parts = Counter(router_mlp_w8a8=1, quant_grouped_mlp=1)
    assert chosen == Counter(whole("w8a8")) - parts + Counter(moe_w8a8_dynamic=1)


STEPS = (
    ("moe_{}", {"router_mlp_{}": 1, "{experts}": 1}),
    ("router_mlp_{}", {"gate_topk": 1, "swiglu_mlp_{}": 1, "{experts}": 1}),
)

BEHIND_A_NORM = (("router_quant_mlp_{}",), ("quant_mlp_{}", "gate_topk"), ("gate_topk",))
"""What reads the rows that a norm has quantised; the first of each is disabled before the next."""


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "w8a8"])
def test_without_a_block_there_are_smaller_ones(scheme: str) -> None:
    """The front becomes a norm that quantises once for three layers, the mixture its parts and then theirs."""
    graph, (quantises, linear, experts) = captured(scheme), words(scheme)
    disable = [f"norm_qkv_rope_{scheme}"]
    norm = f"norm_{quantises}"
    front = {norm: 1, linear: 4, quantises: 1, "rms_norm": 2, "rotary": 2}
    for block, parts in STEPS:
        disable.append(block.format(scheme))
        named = {name.format(scheme, experts=experts): count for name, count in parts.items()}
        assert fused(graph, disable=tuple(disable)) == {**front, "add_rms_norm": 1, **named}
    disable += [f"swiglu_mlp_{scheme}", experts]
    for parts in BEHIND_A_NORM:
        chosen = fused(graph, disable=tuple(disable))
        assert chosen[norm] == 2, "the second one's norm is also the router's"
        assert chosen["add_rms_norm"] == 0
        assert all(chosen[name.format(scheme)] == 1 for name in parts), chosen
        disable.append(parts[0].format(scheme))
    disable.remove("gate_topk")
    chosen = fused(graph, disable=(*disable, norm))
    assert (chosen["add_rms_norm"], chosen[quantises], chosen[linear]) == (2, 5, 7)


class AfterAttention(nn.Module):
    """The end of a layer: a sum and its norm, which a router, routed experts and a shared expert read."""

    def __init__(self, scheme: str) -> None:
        super().__init__()
        layer = Layer(scheme)
        self.norm, self.mlp = layer.norms[1], layer.mlp

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return self.mlp(self.norm(total)), total


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_norm_with_other_readers_quantises_too(scheme: str) -> None:
    graph = capture(AfterAttention(scheme), *call()[:2])[0]
    experts = words(scheme)[2]
    mixture = {f"moe_{scheme}": 1} if scheme != "w8a8" else {f"router_mlp_{scheme}": 1, experts: 1}
    assert fused(graph) == {"add_rms_norm": 1, **mixture}
    norm = f"norm_{words(scheme)[0]}"
    chosen = fused(graph, only=(norm, "gate_topk"))
    assert chosen == {norm: 1, "gate_topk": 1}


def test_one_input_that_is_scaled_otherwise_is_no_block() -> None:
    """Three layers that read the same norm by unlike scales do not quantise it once."""
    layer = Layer("w8a8")
    layer.qkv[1].offset = layer.qkv[1].offset.clone() + 1
    chosen = fused(capture(layer, *call())[0])
    assert chosen["norm_qkv_rope_w8a8"] == 0
    assert chosen["quant_linear"] == 4
