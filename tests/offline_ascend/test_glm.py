"""transformers' GLM-4.5 on the fake npu:0 without glmfuse: what fused graphs are later compared with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from glmfuse import huggingface
from tests.offline_ascend.standin.log import record
from tests.support import glm

BF16 = torch.bfloat16
TOLERANCE = {"eager": 0.0, "sdpa": 2e-2}  # npu_fusion_attention_v3 rounds elsewhere than the CPU's sdpa


def pair(attention: str, **overrides: Any) -> tuple[Any, Any]:
    """The same tiny model on the CPU and on npu:0."""
    on_cpu = copy.deepcopy(glm.tiny(BF16, **overrides))
    on_cpu.set_attn_implementation(attention)
    return on_cpu, copy.deepcopy(on_cpu).to("npu")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_computes_what_the_cpu_computes(attention: str) -> None:
    on_cpu, on_npu = pair(attention)
    ids = huggingface.random_tokens(on_cpu, 2, 7)
    expected = on_cpu(ids, use_cache=False).logits
    found = on_npu(ids.npu(), use_cache=False).logits.cpu()
    assert (found - expected).abs().max() <= TOLERANCE[attention] * expected.abs().max()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefill_through_npugraph_ex_is_the_eager_model(attention: str) -> None:
    _, model = pair(attention)
    compiled = torch.compile(model, backend="npugraph_ex", fullgraph=True, dynamic=False)
    with record() as seen:
        for tokens in (7, 5, 7):
            ids = huggingface.random_tokens(model, 2, tokens)
            given = {"attention_mask": torch.ones_like(ids), "use_cache": False}
            assert torch.equal(compiled(ids, **given).logits, model(ids, **given).logits)
    assert (seen.captures, seen.replays) == (2, 3)


@pytest.mark.parametrize("inplace_pass", [False, True])
def test_a_prefill_without_a_mask_needs_inplace_pass_off(inplace_pass: bool) -> None:
    """transformers looks for packed sequences in the positions: neighbours of one tensor are subtracted."""
    _, model = pair("eager")
    ids = huggingface.random_tokens(model, 2, 7)
    options = {"inplace_pass": inplace_pass}
    compiled = torch.compile(model, backend="npugraph_ex", fullgraph=True, dynamic=False, options=options)
    with record() as seen:
        compiled(ids, use_cache=False)
    assert seen.races == ["aten.sub_.Tensor"] * inplace_pass
    if not inplace_pass:
        assert torch.equal(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


def test_decoding_with_a_static_cache_captures_once() -> None:
    _, model = pair("eager")
    caches = [huggingface.static_cache(model, 1, 16) for _ in range(2)]
    prompt = huggingface.random_tokens(model, 1, 5)
    for cache in caches:
        model(prompt, **huggingface.call_with(model, cache))
    compiled = torch.compile(model, backend="npugraph_ex", fullgraph=True, dynamic=False)
    with record() as seen:
        for _ in range(4):
            token = huggingface.random_tokens(model, 1, 1)
            found = compiled(token, **huggingface.call_with(model, caches[0])).logits
            assert torch.equal(found, model(token, **huggingface.call_with(model, caches[1])).logits)
    assert (seen.captures, seen.replays) == (1, 4)
    for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
