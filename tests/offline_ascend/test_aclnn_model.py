"""A tiny GLM captured on the fake npu:0, with the kernels of `aclnn`: counts, and results of the references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmfuse import huggingface
from glmfuse.lowering.tolerance import allowed
from glmfuse.lowering.verify import difference
from glmfuse.report.report import GraphReport
from tests.support.glm import BATCH, CACHE, PROMPT, tiny
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages

TARGETS = ("aclnn", "aten", "reference")
LAYERS = huggingface.TINY["num_hidden_layers"]
SPARSE = LAYERS - huggingface.TINY["first_k_dense_replace"]

SEVERAL_SITES = 2 * allowed(torch.bfloat16)
Phase = Callable[[Any], dict[str, Any]]


def prefill(model: Any) -> dict[str, Any]:
    ids = huggingface.random_tokens(model, BATCH, PROMPT).npu()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def decode(model: Any) -> dict[str, Any]:
    cache = huggingface.static_cache(model, BATCH, CACHE)
    model(huggingface.random_tokens(model, BATCH, PROMPT).npu(), **huggingface.call_with(model, cache))
    return {"input_ids": huggingface.random_tokens(model, BATCH, 1).npu(), **huggingface.call_with(model, cache)}


def on_npu(dtype: torch.dtype, attention: str = "sdpa", **overrides: Any) -> Any:
    model = copy.deepcopy(tiny(dtype, **overrides)).to("npu")
    model.set_attn_implementation(attention)
    return model


def captured(model: Any, phase: Phase) -> Captured:
    torch.manual_seed(0)  # the same tokens for each dtype
    return capture(model, **phase(model))[0]


def chosen(report: GraphReport) -> dict[str, int]:
    """How many sites of each pattern have a kernel of `aclnn`."""
    names = [row.pattern for row in report.rows() if row.target == "aclnn"]
    return {name: names.count(name) for name in sorted(set(names))}


def logits(module: torch.fx.GraphModule, original: Captured) -> torch.Tensor:
    return outputs_and_writes(module, original.arguments())[0].cpu()


EXPECTED = {
    "add_rms_norm": 2 * LAYERS,  # after attention, and before the next layer
    "moe": SPARSE,
    "rms_norm": 2 * LAYERS + 1,  # of queries and keys, and the first
    "rotary": 2 * LAYERS,
}
UPDATES: dict[Phase, dict[str, int]] = {prefill: {}, decode: {"cache_update": 2 * LAYERS}}


@pytest.mark.parametrize(("attention", "pattern"), [("sdpa", "attention"), ("eager", "eager_attention")])
@pytest.mark.parametrize("phase", [prefill, decode])
def test_all_that_torch_npu_has_an_operator_for_is_that_operator(phase: Phase, attention: str, pattern: str) -> None:
    report = run_stages(captured(on_npu(torch.bfloat16, attention), phase).module(), targets=TARGETS)
    assert chosen(report) == {**EXPECTED, **UPDATES[phase], pattern: LAYERS}


def test_numbers_of_sequences_and_tokens_may_vary() -> None:
    """Under eager attention: torch_npu's sdpa takes the numbers of the trace for constants."""
    model = on_npu(torch.bfloat16, "eager")
    arguments = prefill(model)
    for tensor in arguments.values():
        torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_dynamic(tensor, 1)
    original = capture(model, **arguments)[0]
    module = original.module()
    assert chosen(run_stages(module, targets=TARGETS)) == {**EXPECTED, "eager_attention": LAYERS}
    assert 0 < difference(logits(module, original), logits(original.module(), original))[1] < SEVERAL_SITES


@pytest.mark.parametrize("phase", [prefill, decode])
def test_in_fp32_the_model_computes_as_before(phase: Phase) -> None:
    """All but attention, whose operator takes no fp32."""
    original = captured(on_npu(torch.float32), phase)
    module = original.module()
    assert chosen(run_stages(module, targets=TARGETS)) == {**EXPECTED, **UPDATES[phase]}
    assert difference(logits(module, original), logits(original.module(), original))[1] <= allowed(torch.float32)


@pytest.mark.parametrize("phase", [prefill, decode])
def test_in_bf16_a_dense_model_is_no_further_from_fp32(phase: Phase) -> None:
    """Errors of 4 layers add up, and a random model amplifies them; fewer roundings must not make them larger."""
    model = on_npu(torch.bfloat16, first_k_dense_replace=LAYERS)
    original = captured(model, phase)
    module = original.module()
    assert chosen(run_stages(module, targets=TARGETS))["add_rms_norm"] == 2 * LAYERS
    found, expected = logits(module, original), logits(original.module(), original)
    wide = captured(model.float(), phase)
    exact = logits(wide.module(), wide)
    assert 0 < difference(found, exact)[1] <= difference(expected, exact)[1]


@pytest.mark.parametrize("phase", [prefill, decode])
def test_in_bf16_every_site_stays_within_its_tolerance(phase: Phase) -> None:
    """A router may choose another expert for one bit, so with experts sites are compared and logits are not."""
    original = captured(on_npu(torch.bfloat16), phase)
    module = original.module()
    report = run_stages(module, targets=TARGETS, verify=True)
    outputs_and_writes(module, original.arguments())
    ours = [site for site in report.verified.values() if site.target == "aclnn"]
    assert len(ours) == sum(chosen(report).values())
    assert all(site.calls == 1 for site in ours)
