"""Routed experts in int8 by torch_npu's and vllm-ascend's operators: which calls are quant_grouped_mlp, which are not.

Written as vllm-ascend 182b75e writes them for one rank, keyword for keyword; each case changes one. On the fake npu:0:
numbers are those of the stand-ins' references, no chip's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from glmfuse.report.report import GraphReport
from tests.offline_ascend.test_dialects import calls
from tests.offline_ascend.test_quantised import traced
from tests.support.graphs import run_stages

BF16, FP16, FP32, INT8, INT32 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32
npu, ascend = torch.ops.npu, torch.ops._C_ascend
TOKENS, ACTIVE, EXPERTS, HIDDEN, WIDTH = 5, 3, 4, 64, 32
Tensors = dict[str, Tensor]
NAME = "quant_grouped_mlp"


def tensors() -> Tensors:
    scores = torch.randn(TOKENS, EXPERTS)
    made = {
        "x": torch.randn(1, TOKENS, HIDDEN).to(BF16),
        "weights": scores.softmax(-1)[:, :ACTIVE],
        "ids": scores.argsort(-1)[:, :ACTIVE],
        "w1": torch.randint(-127, 128, (EXPERTS, HIDDEN, 2 * WIDTH), dtype=INT8),
        "s1": torch.rand(EXPERTS, 2 * WIDTH) * 1e-3,
        "w2": torch.randint(-127, 128, (EXPERTS, WIDTH, HIDDEN), dtype=INT8),
        "s2": torch.rand(EXPERTS, HIDDEN) * 1e-3,
        "smooth": torch.rand(EXPERTS, HIDDEN),
        "smooth_inner": torch.rand(EXPERTS, WIDTH),
        "whole": torch.randint(-99, 99, (EXPERTS, 2 * WIDTH), dtype=INT32),
        "skip": torch.randn(TOKENS, HIDDEN).to(BF16),
    }
    return {name: value.npu() for name, value in made.items()}


def sort(t: Tensors, **keywords: Any) -> tuple[Tensor, ...]:
    given = {
        "active_num": TOKENS * ACTIVE, "expert_num": EXPERTS, "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True, "active_expert_range": [0, EXPERTS], "quant_mode": 1, **keywords,
    }  # fmt: skip
    return npu.npu_moe_init_routing_v2(t["x"].view(-1, HIDDEN), t["ids"].to(INT32), **given)


def grouped(rows: Tensor, scale: Tensor | None, w: Tensor, s: Tensor | None, counts: Tensor, **keywords: Any) -> Tensor:
    given = {
        "scale": None if s is None else [s], "per_token_scale": None if scale is None else [scale], "split_item": 2,
        "group_list_type": 1, "group_type": 0, "group_list": counts, "output_dtype": BF16, **keywords,
    }  # fmt: skip
    return npu.npu_grouped_matmul(x=[rows], weight=[w], **given)[0]


def activated(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    return npu.npu_dynamic_quant(npu.npu_swiglu(grouped(rows, scale, t["w1"], t["s1"], counts, **keywords)))


def undone(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    total = grouped(rows, None, t["w1"], None, counts, output_dtype=INT32)
    given = {
        "weight_scale": t["s1"], "activation_scale": scale, "group_index": counts, "activate_left": True,
        "quant_mode": 1, **keywords,
    }  # fmt: skip
    return npu.npu_dequant_swiglu_quant(total, **given)


def at_once(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
    return npu.npu_grouped_matmul_swiglu_quant(rows, t["w1"], counts.cumsum(0), t["s1"], scale, **keywords)[:2]


def second(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
    given = {"group_list_type": 1, **keywords}
    return npu.npu_grouped_matmul_swiglu_quant_v2(rows, [t["w1"]], [t["s1"]], scale, counts, **given)


def of_vllm_ascend(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
    operator = ascend.grouped_matmul_swiglu_quant_weight_nz
    return operator(rows, t["w1"], t["s1"], scale, counts.cumsum(0), **keywords)[:2]


def unpermuted(t: Tensors, rows: Tensor, places: Tensor, **keywords: Any) -> Tensor:
    return npu.npu_moe_token_unpermute(rows, places, **{"probs": t["weights"].to(BF16), **keywords})


def finalized(t: Tensors, rows: Tensor, places: Tensor, **keywords: Any) -> Tensor:
    given = {"drop_pad_mode": 2, "scales": t["weights"], "skip1": None, "bias": None, **keywords}
    owners = None if given["bias"] is None else t["ids"].to(INT32)
    return npu.npu_moe_finalize_routing(
        rows, skip2=None, expanded_src_to_dst_row=places, export_for_source_row=owners, **given
    )


def layer(
    activate: Callable[..., tuple[Tensor, ...]] = activated, combine: Callable[..., Tensor] = unpermuted, **changed: Any
) -> Callable[[Tensors], Tensor]:
    """A layer, with keywords `changed` of its routing, activate, down or combine, or functions that make them."""

    def call(t: Tensors) -> Tensor:
        keywords = {part: made(t) if callable(made) else made for part, made in changed.items()}
        rows, places, counts, scale = sort(t, **keywords.get("routing", {}))
        hidden, inner = activate(t, rows, scale, counts, **keywords.get("activated", {}))
        outputs = grouped(hidden, inner, t["w2"], t["s2"], counts, **keywords.get("down", {}))
        return combine(t, outputs, places, **keywords.get("combined", {})).view(t["x"].shape)

    return call


def quantised_after(t: Tensors) -> Tensor:
    rows, places, counts, _ = sort(t, quant_mode=-1)
    hidden, inner = activated(t, *npu.npu_dynamic_quant(rows), counts)
    return unpermuted(t, grouped(hidden, inner, t["w2"], t["s2"], counts), places).view(t["x"].shape)


MEANT: dict[str, Callable[[Tensors], Tensor]] = {
    "product, activation, quantisation": layer(),
    "quantised behind the routing": quantised_after,
    "activation in one operator": layer(at_once, finalized),
    "its second version": layer(second, finalized),
    "vllm-ascend's": layer(of_vllm_ascend),
    "undone and activated": layer(undone),
}

OTHER: dict[str, Callable[[Tensors], Tensor]] = {
    "rows smoothed": layer(routing=lambda t: {"scale": t["smooth"]}),
    "counts that are ends": layer(routing={"expert_tokens_num_type": 0}),
    "places of rows and not of choices": layer(routing={"row_idx_type": 1}),
    "experts of another rank": layer(routing={"active_expert_range": [1, EXPERTS]}),
    "more experts than have weights": layer(routing={"expert_num": 2 * EXPERTS}),
    "fewer rows than choices": layer(routing={"active_num": TOKENS}),
    "gate and up told where, not how many": layer(activated={"group_list_type": 0}),
    "gate and up rounded to fp16": layer(activated={"output_dtype": FP16}),
    "gate and up with a bias": layer(activated=lambda t: {"bias": [t["whole"]]}),
    "down told where, not how many": layer(down={"group_list_type": 0}),
    "down with a bias": layer(down=lambda t: {"bias": [t["s2"]]}),
    "down activated": layer(down={"act_type": 1}),
    "the right half activated": layer(undone, activated={"activate_left": False}),
    "undone by no groups": layer(undone, activated={"group_index": None}),
    "undone with a bias": layer(undone, activated=lambda t: {"bias": t["whole"]}),
    "activation smoothed": layer(undone, activated=lambda t: {"quant_scale": t["smooth_inner"]}),
    "neighbours as gate and up": layer(undone, activated={"swiglu_mode": 1}),
    "one operator told where, not how many": layer(second, finalized, activated={"group_list_type": 0}),
    "one operator that limits": layer(of_vllm_ascend, activated={"swiglu_limit": 7.0}),
    "choices without weights": layer(combine=finalized, combined={"scales": None, "k": ACTIVE}),
    "places column by column": layer(combine=finalized, combined={"drop_pad_mode": 0}),
    "something added": layer(combine=finalized, combined=lambda t: {"skip1": t["skip"]}),
    "a bias for each expert": layer(combine=finalized, combined=lambda t: {"bias": t["s2"].to(BF16)}),
}
"""What differs in one keyword."""


def read(module: fx.GraphModule) -> GraphReport:
    return run_stages(module, only=(NAME,))


@pytest.mark.parametrize("name", MEANT)
def test_a_layer_that_means_the_pattern_is_found(name: str) -> None:
    assert read(traced(MEANT[name], tensors())).count()[NAME] == 1


@pytest.mark.parametrize("name", OTHER)
def test_a_layer_that_means_something_else_is_not_mistaken(name: str) -> None:
    module = traced(OTHER[name], tensors())
    before = calls(module)
    assert not read(module).count()[NAME]
    assert calls(module) == before
