"""Attention over its cache: no key is repeated, no cache copied, the mask made once, in every form of the call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from glmfuse import Report, huggingface
from glmfuse.lowering.tolerance import allowed
from glmfuse.lowering.verify import difference
from tests.support.glm import BATCH, CACHE, DTYPES, PHASES, Phase, fresh, prefill_static, tiny
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

LAYERS = 2
PATTERN = {"sdpa": "attention", "eager": "eager_attention"}
OURS = {"targets": ("aten", "reference")}
STATIC = ("prefill_static", "decode_static")


def close(ours: list[Any], theirs: list[Any]) -> bool:
    """Equal in everything but the order of sums."""
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            if difference(a, b)[1] > allowed(a.dtype):
                return False
        elif not same_bits([a], [b]):
            return False
    return True


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
@pytest.mark.parametrize(
    ("dtype", "implementation"), [*((dtype, "sdpa") for dtype in DTYPES), (torch.bfloat16, "eager")], ids=str
)
def test_attention_in_every_form(dtype: torch.dtype, implementation: str, phase: Phase) -> None:
    model = tiny(dtype, num_hidden_layers=LAYERS, attn_implementation=implementation)
    captured = capture(model, **phase.arguments(model, False))[0]
    module = captured.module()
    report = run_stages(module, **OURS)
    assert report.count()[PATTERN[implementation]] == LAYERS
    assert report.count("chosen")["cache_update"] == (2 * LAYERS if phase.name in STATIC else 0)
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert close(outputs_and_writes(module, captured.arguments()), before)
    _nothing_is_repeated(module, model, phase)


def _nothing_is_repeated(module: torch.fx.GraphModule, model: Any, phase: Phase) -> None:
    targets = [str(node.target) for node in module.graph.nodes]
    assert targets.count("aten.where.self") <= 1
    assert "aten.index_copy.default" not in targets
    copies = [node for node in module.graph.nodes if str(node.target) == "aten.copy_.default"]
    assert all(node.args[0].meta["val"].dim() == 0 for node in copies), "counters alone are copied back"
    heads, width = model.config.num_attention_heads, model.config.head_dim
    cached = CACHE if phase.name in STATIC else None
    for node in module.graph.nodes:
        if str(node.target) == "aten.clone.default" and "val" in node.meta:
            assert tuple(node.meta["val"].shape[-2:]) != (cached, width), f"{node} copies a cache of {heads} heads"


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("implementation", PATTERN)
def test_thirty_two_steps_of_decoding(implementation: str, experts: str) -> None:
    """Logits, cache and counters, step by step along eager's tokens."""
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS, attn_implementation=implementation, experts=experts)
    report = Report()
    options = {"engine": "eager", "report": report, "expect": {"cache_update": 2 * LAYERS}}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="glmfuse", options=options)
    cache = huggingface.static_cache(model, BATCH, 40)
    with torch.no_grad():
        logits = model(huggingface.random_tokens(model, BATCH, 5), **huggingface.call_with(model, cache)).logits
        other = copy.deepcopy(cache)
        for _ in range(32):
            token = logits[:, -1:].argmax(-1)
            logits = model(token, **huggingface.call_with(model, cache)).logits
            found = compiled(token, **huggingface.call_with(model, other)).logits
            assert close([found], [logits])
    assert len(report.graphs) == 1
    for ours, theirs in zip(other.layers, cache.layers, strict=True):
        assert close([ours.keys, ours.values], [theirs.keys, theirs.values])
        assert torch.equal(ours.cumulative_length, theirs.cumulative_length)


def test_sequences_of_unlike_lengths() -> None:
    """Padded on the left: each sequence has a mask of its own."""
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS)
    cache = huggingface.static_cache(model, BATCH, CACHE)
    seen = torch.ones(BATCH, 7, dtype=torch.int64)
    seen[0, :3] = 0
    report = Report()
    with torch.no_grad():
        model(huggingface.random_tokens(model, BATCH, 7), **huggingface.call_with(model, cache), attention_mask=seen)
        token = huggingface.random_tokens(model, BATCH, 1)
        mask = torch.cat([seen, torch.ones(BATCH, 1, dtype=torch.int64)], 1)
        other = copy.deepcopy(cache)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="glmfuse", options={"engine": "eager", "report": report})
        found = compiled(token, **huggingface.call_with(model, other), attention_mask=mask).logits
        assert close([found], [model(token, **huggingface.call_with(model, cache), attention_mask=mask).logits])
    assert report.count("chosen")["attention"] == LAYERS
    assert close([layer.keys for layer in other.layers], [layer.keys for layer in cache.layers])


def test_the_phases_of_generate() -> None:
    """Prefill over slices of the cache under the causal mask, then one token with a mask that is given."""
    model = copy.deepcopy(tiny(torch.bfloat16, num_hidden_layers=LAYERS))
    ids = huggingface.random_tokens(model, 1, 6)
    arguments = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(ids, **arguments)
    report = Report()
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="glmfuse", options={"engine": "eager", "report": report})
    assert torch.equal(model.generate(ids, **arguments), expected)
    first, *later = report.graphs
    assert first.count()["attention"] == LAYERS
    assert {row.scalars["causal"] for row in first.rows() if row.pattern == "attention"} == {True}
    assert later
    for graph in later:
        assert graph.count("chosen")["attention"] == LAYERS
        assert graph.count("chosen")["cache_update"] == 2 * LAYERS


def test_the_reference_changes_no_bit() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS, attn_implementation="eager")
    captured = capture(model, **prefill_static(model))[0]
    module = captured.module()
    assert run_stages(module).count("chosen")["eager_attention"] == LAYERS
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


def test_verify_compares_what_is_written_in_place() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS)
    given = prefill_static(model)
    report = Report()
    torch._dynamo.reset()
    options = {"engine": "eager", "verify": True, "report": report}
    torch.compile(model, backend="glmfuse", options=options)(**fresh(given))
    (graph,) = report.graphs
    updates = [entry for entry in graph.verified.values() if entry.pattern == "cache_update"]
    assert len(updates) == 2 * LAYERS
    assert all(entry.calls == 1 for entry in updates)
