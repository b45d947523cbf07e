"""A tiny GLM under `backend="glmfuse"` on the fake npu:0, through the real npugraph_ex: captured, replayed, recaptured.

Operators compute by the stand-ins' kernels, so what is shown is that the hand-off changes nothing, not that a chip
would take it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import glmfuse
from glmfuse import huggingface
from tests.offline_ascend.standin.log import record
from tests.support.glm import BATCH, CACHE, PROMPT, tiny
from tests.support.graphs import capture, run_stages

EXPERTS = ("grouped_mm", "batched_mm")
STEPS = 3
PLAIN = ("aten", "reference")
"""Targets that change no bit on an NPU: the default has torch_npu's operators first, which round otherwise."""


def on_npu(experts: str = "grouped_mm") -> Any:
    return copy.deepcopy(tiny(torch.bfloat16, num_hidden_layers=2, experts=experts)).to("npu")


def compiled(model: Any, **options: Any) -> tuple[Callable[..., Any], glmfuse.Report]:
    report = glmfuse.Report()
    call = torch.compile(model, backend="glmfuse", fullgraph=True, options={"report": report, **options})
    return call, report


def prompt(model: Any, tokens: int = PROMPT) -> dict[str, Any]:
    ids = huggingface.random_tokens(model, BATCH, tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def filled(model: Any, length: int = CACHE) -> transformers.StaticCache:
    cache = huggingface.static_cache(model, BATCH, length)
    model(huggingface.random_tokens(model, BATCH, PROMPT), **huggingface.call_with(model, cache))
    return cache


def contents(cache: transformers.StaticCache) -> list[torch.Tensor]:
    """Keys, values and the count of tokens of each layer."""
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values, layer.cumulative_length)]
    return [torch.as_tensor(value).cpu().clone() for value in kept]


def on_cpu(model: Any, arguments: dict[str, Any]) -> dict[str, int]:
    """How many sites of each pattern the same call has on a CPU."""
    model = copy.deepcopy(model).to("cpu")
    moved = {name: _to_cpu(value) for name, value in arguments.items()}
    return dict(run_stages(capture(model, **moved)[0].module()).count())


def _to_cpu(value: Any) -> Any:
    if isinstance(value, transformers.StaticCache):
        value = copy.deepcopy(value)
        for layer in value.layers:
            for name, kept in vars(layer).items():
                if isinstance(kept, torch.Tensor):
                    setattr(layer, name, kept.cpu())
            layer.device = torch.device("cpu")
        return value
    return value.cpu() if isinstance(value, torch.Tensor) else value


def test_a_result_that_is_held_does_not_change_with_the_next_call() -> None:
    model = on_npu()
    call, _ = compiled(model, targets=PLAIN)
    arguments = [prompt(model) for _ in range(3)]
    held = [call(**one).logits for one in arguments]
    for mine, one in zip(held, arguments, strict=True):
        assert torch.equal(mine.cpu(), model(**one).logits.cpu())


@pytest.mark.parametrize("experts", EXPERTS)
def test_a_prompt_is_captured_replayed_and_captured_again_at_a_new_shape(experts: str) -> None:
    model = on_npu(experts)
    call, report = compiled(model, targets=PLAIN)
    for tokens, is_new in ((PROMPT, True), (PROMPT, False), (PROMPT - 2, True), (PROMPT, False)):
        arguments = prompt(model, tokens)
        with record() as log:
            found = call(**arguments).logits
        assert (log.captures > 0) is is_new
        assert log.replays
        assert torch.equal(found.cpu(), model(**arguments).logits.cpu())
    assert {graph.engine for graph in report.graphs} == {"npugraph_ex"}
    assert dict(report.graphs[0].count()) == on_cpu(model, prompt(model))


@pytest.mark.parametrize("experts", EXPERTS)
def test_decoding_replays_one_capture_and_writes_the_cache_as_eager_does(experts: str) -> None:
    model = on_npu(experts)
    call, report = compiled(model, targets=PLAIN)
    ours = filled(model)
    theirs = copy.deepcopy(ours)
    before = {
        "input_ids": huggingface.random_tokens(model, BATCH, 1),
        **huggingface.call_with(model, copy.deepcopy(ours)),
    }
    for step in range(STEPS):
        ids = huggingface.random_tokens(model, BATCH, 1)
        with record() as log:
            found = call(input_ids=ids, **huggingface.call_with(model, ours)).logits
        expected = model(input_ids=ids, **huggingface.call_with(model, theirs)).logits
        assert (log.captures > 0) is (step == 0)
        assert torch.equal(found.cpu(), expected.cpu())
        assert all(map(torch.equal, contents(ours), contents(theirs)))
    assert dict(report.graphs[0].count()) == on_cpu(model, before)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("targets", [None, ("aclnn",)], ids=["default", "aclnn"])
def test_capture_and_replay_of_torch_npus_operators_give_the_bits_of_eager_calls(targets: Any, experts: str) -> None:
    model = on_npu(experts)
    call, report = compiled(model, targets=targets)
    cache = filled(model)
    copies = copy.deepcopy(cache), copy.deepcopy(cache)
    ids = [huggingface.random_tokens(model, BATCH, 1) for _ in range(STEPS)]
    found = [call(input_ids=one, **huggingface.call_with(model, copies[0])).logits.cpu() for one in ids]
    torch._dynamo.reset()
    one_by_one, _ = compiled(model, targets=targets, engine="eager")
    expected = [one_by_one(input_ids=one, **huggingface.call_with(model, copies[1])).logits.cpu() for one in ids]
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, contents(copies[0]), contents(copies[1])))
    chosen = report.graphs[0].count("chosen")
    assert chosen["add_rms_norm"] == 4
    assert chosen["attention"] == 2
    assert chosen["cache_update"] == 4
    assert chosen["moe"] == 1
    by = {row.target for row in report.rows() if row.status == "chosen"}
    assert by == ({"aclnn"} if targets else {"aclnn", "reference"})


@pytest.mark.parametrize("targets", [("aclnn",), ("aten", "reference")], ids=" ".join)
def test_writing_a_cache_of_16384_tokens_copies_no_cache(targets: tuple[str, ...]) -> None:
    model = on_npu()
    call, _ = compiled(model, targets=targets)
    cache = filled(model, 16384)
    size = cache.layers[0].keys.numel() * cache.layers[0].keys.element_size()
    ids = huggingface.random_tokens(model, BATCH, 1)
    with record() as first:
        call(input_ids=ids, **huggingface.call_with(model, cache))
    written = [op for op in first.captured if "index_copy" in op or "scatter_nd_update" in op]
    assert len(written) == 4, "keys and values of two layers"
    assert all("_." in op for op in written), "in place"
    with record() as again:
        call(input_ids=ids, **huggingface.call_with(model, cache))
    assert again.allocated + sum(again.copied) < size / 16
    if targets == ("aclnn",):  # plain attention repeats keys and values, which is not the update's doing
        assert first.allocated < size
