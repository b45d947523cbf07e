"""What the kernels of `aclnn` do not take, each with its reason, and what they are said to gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.backend import fusion_for
from glmfuse.lowering.aclnn import device
from glmfuse.lowering.aclnn.kernel import AclnnKernel, kernel_of
from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.lowering.aclnn.target import ACLNN
from glmfuse.matching.examples import variants
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import Variant
from glmfuse.matching.select import Gain
from glmfuse.options import LAUNCH_US, Options
from glmfuse.patterns import BY_NAME
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import request_of, trace_of

BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def variant_of(name: str, words: str) -> Variant:
    return next(found for found in variants(BY_NAME[name]) if str(found) == words)


def drawn(name: str, words: str = "full") -> dict[str, Any]:
    return arguments(name, variant_of(name, words), BF16, 3)


def attention(batch: int, heads: int, kv_heads: int, queries: int, tokens: int, width: int, **rest: Any) -> Any:
    kept = empty(batch, kv_heads, tokens, width)
    return {"q": empty(batch, heads, queries, width), "k": kept, "v": kept, "scale": 0.1, **rest}


def paged(block: int, each: int = 2, table: torch.dtype = torch.int32) -> dict[str, Any]:
    kept, lengths = empty(9, block, 2, 64), empty(3, dtype=torch.int32)
    page = empty(3, each, dtype=table)
    return {"q": empty(3, 8, 64), "k_cache": kept, "v_cache": kept, "table": page, "lengths": lengths, "scale": 0.1}


def experts(count: int, hidden: int = 64, **rest: Any) -> dict[str, Any]:
    chosen = {"weights": empty(6, 1, dtype=torch.float32), "ids": empty(6, 1, dtype=torch.int64)}
    both, down = empty(count, 32, hidden), empty(count, hidden, 16)
    return {"x": empty(2, 3, hidden), **chosen, "w_gate_up": both, "w_down": down, **rest}


def route(n_group: int, each: int, **rest: Any) -> dict[str, Any]:
    total = n_group * each
    choice = {"top_k": 2, "n_group": n_group, "topk_group": 1, "scale": 2.5, "renormalize": True}
    logits, bias = empty(5, total, dtype=torch.float32), empty(total, dtype=torch.float32)
    return {"logits": logits, "bias": bias, **choice, **rest}


def rotary(x: Tensor, cos: Tensor, interleaved: bool) -> dict[str, Any]:
    return {"x": x, "cos": cos, "sin": cos, "interleaved": interleaved}


MISSES: list[tuple[str, dict[str, Any], str]] = [
    ("rms_norm", {**drawn("rms_norm"), "x": empty(3, 8, dtype=torch.float64)}, "dtype torch.float64 is none of"),
    ("rms_norm", {"x": empty(8), "w": empty(8), "eps": 1e-5}, "x has 1 dimensions, not 2 to 8"),
    ("rms_norm", {**drawn("rms_norm"), "w": empty(8, dtype=torch.float32)}, "x torch.bfloat16, w torch.float32"),
    ("add_rms_norm", {**drawn("add_rms_norm"), "residual": empty(3, 8, dtype=torch.float32)}, "takes one dtype"),
    ("rotary", rotary(empty(2, 4, 5, 64), empty(2, 1, 5, 32), True), "no row for x of shape (2, 4, 5, 64)"),
    ("rotary", rotary(empty(2, 4, 5, 64), empty(5, 32), False), "cos of shape (5, 32) is no row"),
    ("rotary", rotary(empty(1, 1000, 5, 64), empty(1, 1, 5, 32), False), "sequences or heads 1000 exceeds 999"),
    ("rotary", rotary(empty(10, 100, 5, 64), empty(1, 1, 5, 32), True), "sequences or heads 1000 exceeds 999"),
    ("rotary", rotary(empty(1, 2, 5, 1024), empty(1, 1, 5, 896), False), "turned width 896 exceeds 894"),
    ("swiglu", {"gate": empty(8, 6).t(), "up": None}, "lies with strides (1, 6), not contiguous"),
    ("route_topk", route(2, 8, renormalize=False), "always divides sigmoid scores by their sum"),
    ("route_topk", route(4, 2), "groups of 2 experts"),
    ("route_topk", route(1, 2049), "experts 2049 exceeds 2048"),
    ("route_topk", route(65, 3), "padded to 32 experts, 2080 exceeds 2048"),
    ("route_topk", route(4, 4, top_k=5), "top_k 5 exceeds 4"),
    ("attention", attention(1, 8, 2, 1, 32, 24, causal=False), "head_dim 24 is no multiple of 16"),
    ("attention", attention(1, 8, 2, 1, 32, 528, causal=False), "head_dim 528 exceeds 512"),
    ("attention", attention(1, 257, 257, 1, 32, 64, causal=False), "heads 257 exceeds 256"),
    ("attention", attention(1, 130, 2, 1, 32, 64, causal=False), "heads of a group 65 exceeds 64"),
    ("attention", attention(1, 8, 2, 1, 262145, 64, causal=False), "cached tokens 262145 exceeds 262144"),
    ("attention", attention(1, 8, 2, 1, 1, 64, causal=True), "no triangle for it"),
    (
        "attention",
        attention(2, 8, 2, 5, 32, 64, causal=False, mask=empty(2, 1, 1, 32, dtype=torch.bool)),
        "a mask of shape (2, 1, 1, 32); the operator takes (2, 1, 5, 32)",
    ),
    (
        "attention",
        attention(2, 8, 2, 5, 32, 64, causal=False, mask=empty(2, 8, 5, 32, dtype=torch.bool)),
        "a mask of shape (2, 8, 5, 32)",
    ),
    ("eager_attention", attention(2, 8, 2, 5, 32, 64, bias=empty(2, 1, 1, 32)), "a bias of shape (2, 1, 1, 32)"),
    ("cache_update", {**drawn("cache_update"), "cache": empty(2, 2, 9, 8, dtype=torch.int8)}, "dtype torch.int8"),
    ("paged_attention", paged(24), "blocks of 24 tokens, no multiple of 16"),
    ("paged_attention", paged(528), "tokens of a block 528 exceeds 512"),
    ("paged_attention", paged(512, 513), "cached tokens 262656 exceeds 262144"),
    ("paged_attention", paged(32, table=torch.int64), "dtype torch.int64 is none of torch.int32"),
    ("cache_update", {**drawn("cache_update"), "rows": empty(2, 2, 2, 8, dtype=torch.float32)}, "takes one dtype"),
    ("grouped_mlp", experts(1), "one expert alone"),
    ("grouped_mlp", experts(1025), "experts 1025 exceeds 1024"),
    ("grouped_mlp", experts(2, 65536), "hidden 65536 exceeds 65535"),
    ("grouped_mlp", experts(4, w_down=empty(4, 16, 64).transpose(1, 2)), "w_down of shape (4, 64, 16) lies with"),
    ("moe", drawn("moe", "renormalize=False"), "always divides sigmoid scores by their sum"),
    ("moe", {**drawn("moe", "renormalize=True"), "w_shared_down": empty(8, 8).float()}, "takes one dtype"),
]


@pytest.mark.parametrize(("name", "values", "reason"), MISSES, ids=[f"{name}-{why}" for name, _, why in MISSES])
def test_a_near_miss_is_refused_with_its_reason(name: str, values: dict[str, Any], reason: str) -> None:
    assert reason in str(ACLNN.kernels[name].supports(request_of(name, Variant(), values)))


def test_a_result_that_lies_otherwise_is_refused_where_the_kernel_is_traced() -> None:
    """The operator lays whole heads of [tokens, heads, width] out in that order, and the pattern as it finds them."""
    values = rotary(empty(4, 5, 32).transpose(0, 1), empty(5, 1, 32), False)
    variant = variant_of("rotary", "interleaved=False, P=0")
    assert KERNELS["rotary"].limits(request_of("rotary", variant, values)) is None
    found = trace_of("rotary", variant, values).of(KERNELS["rotary"].fn)
    assert found == "it returns torch.bfloat16 of shape (5, 4, 32) and strides (128, 32, 1) on npu:0"


@pytest.mark.parametrize("name", ["attention", "eager_attention", "paged_attention"])
def test_attention_takes_no_fp32(name: str) -> None:
    variant = next(variants(BY_NAME[name]))
    reason = KERNELS[name].limits(request_of(name, variant, arguments(name, variant, torch.float32, 0)))
    assert reason == "dtype torch.float32 is none of torch.bfloat16, torch.float16"


def test_every_kernel_has_a_near_miss() -> None:
    assert {name for name, _, _ in MISSES} == set(KERNELS)


def test_tensors_of_another_device_are_refused() -> None:
    values = drawn("rms_norm")
    request = request_of("rms_norm", Variant(), values)
    elsewhere = {name: Layout.of(value) for name, value in values.items() if isinstance(value, Tensor)}
    moved = replace(request, tensors=elsewhere)
    assert ACLNN.kernels["rms_norm"].supports(moved) == "torch_npu's operators run on an NPU, not on cpu"


def test_an_operator_that_the_build_lacks_is_named() -> None:
    kernel = AclnnKernel(lambda: None, ("npu_rms_norm", "npu_absent"), lambda _: None, KERNELS["rms_norm"].gain)
    request = request_of("rms_norm", Variant(), drawn("rms_norm"))
    assert kernel_of(kernel).supports(request) == "this build of torch_npu has no npu_absent"


def test_by_default_it_comes_before_aten() -> None:
    names = [target.name for target in fusion_for(Options.parse({})).targets]
    assert names.index("aclnn") < names.index("aten") < names.index("reference")


def test_another_chip_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.unavailable() is None
    monkeypatch.setattr(torch.npu, "get_device_name", lambda _: "Ascend310P3")
    assert str(device.unavailable()).endswith("and this is Ascend310P3")


def gain(name: str, words: str, values: dict[str, Any], compute_nodes: int) -> Gain:
    variant = variant_of(name, words)
    outputs = trace_of(name, variant, values).outputs
    return KERNELS[name].gain(request_of(name, variant, values, compute_nodes, outputs))


def test_halves_of_one_tensor_gain_and_two_tensors_lose() -> None:
    """Joining two tensors moves twice what it joins: 7 times the result, where silu and the product move 5."""
    rows, wide = empty(4096, 1536), 4096 * 1536 * 2
    merged = gain("swiglu", "no up", {"gate": empty(4096, 3072)}, 2)
    assert merged.saved == pytest.approx(LAUNCH_US + 2 * wide / 1.6e6)
    apart = gain("swiglu", "full", {"gate": rows, "up": rows}, 2)
    assert apart.saved == pytest.approx(-2 * wide / 1.6e6)
    assert "8.81e+07 bytes for 6.29e+07" in str(apart)


def test_keys_repeated_for_each_head_are_what_attention_saves() -> None:
    values = attention(1, 96, 8, 1, 16384, 128, causal=False)
    held, rows = 2 * 8 * 16384 * 128 * 2, 96
    own = gain("attention", "no mask, causal=False", values, 1)
    repeated = gain("attention", "no mask, causal=False, spelled repeated", values, 1)
    assert own.saved == pytest.approx(64 * rows / 1.6e6)
    assert repeated.saved - own.saved == pytest.approx(held * 2 * 12 / 1.6e6)


def test_an_operator_of_another_front_end_is_not_replaced_by_attentions() -> None:
    values = attention(1, 96, 8, 1, 16384, 128, causal=False)
    request = request_of("attention", Variant(frozenset({"mask"}), spelling="another"), values, 1)
    assert KERNELS["attention"].gain(request).saved == 0


def test_values_that_must_be_copied_cost_more_than_the_operator_saves() -> None:
    values = attention(1, 16, 8, 1, 16384, 128, causal=False)
    values["v"] = empty(1, 16384, 8, 128).transpose(1, 2)
    assert gain("attention", "no mask, causal=False", values, 1).saved < 0
