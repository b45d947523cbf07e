"""The attention kernels at the edges of their limits, and what they leave unread; see test_kernels.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from glmfuse import Report
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.checking import distance, widened
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import Geometry, arguments, geometry
from glmfuse.lowering.pypto.launch.launch import interpret
from glmfuse.lowering.pypto.process import Mode
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import Variant
from glmfuse.matching.select import Request
from glmfuse.patterns import attention, paged_attention
from tests.support.glm import decode_dynamic, fresh, tiny

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

TINY = geometry("tiny")
PATTERNS = {"attention": attention, "paged_attention": paged_attention}
EDGES = {
    "one head": replace(TINY, heads=2, kv_heads=2),
    "96 heads": replace(TINY, heads=96, kv_heads=1),
    "odd group": replace(TINY, heads=21, kv_heads=3),
    "narrow": replace(TINY, head_dim=8),
    "odd width": replace(TINY, head_dim=24),
    "wide": replace(TINY, heads=8, kv_heads=1, head_dim=256),
    "short": replace(TINY, cached=16, block=16),
    "long": replace(TINY, kv_heads=1, cached=5008, block=16),
    "large blocks": replace(TINY, cached=3072, block=1024),
}


def check(name: str, values: dict[str, Any]) -> None:
    """The kernel, compiled through all passes, is no further from the exact result than eager."""
    found = interpret(KERNELS[name].launch(ASCEND_910B, **values), Mode.COMPILE)
    eager = PATTERNS[name].function(**values)
    exact = {key: widened(value) for key, value in values.items()}
    assert distance(name, found, exact) <= distance(name, eager, exact)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", PATTERNS)
def test_edges_of_the_limits(name: str, edge: str, tokens: int) -> None:
    check(name, arguments(name, EDGES[edge], tokens, torch.bfloat16))


@pytest.mark.parametrize("name", PATTERNS)
def test_many_sequences(name: str) -> None:
    """With short caches: the interpreter keeps the caches for every round of a loop."""
    at = replace(TINY, heads=4, kv_heads=1, cached=16, block=16)
    check(name, arguments(name, at, 512, torch.bfloat16))


def test_what_lies_past_a_sequence_is_not_read() -> None:
    """Neither the rest of its last block, nor what the table holds behind that block."""
    values = arguments("paged_attention", TINY, 4, torch.bfloat16)
    values["lengths"] = torch.tensor([1, 40, 300, 320], dtype=torch.int32)
    clean = interpret(KERNELS["paged_attention"].launch(ASCEND_910B, **values))
    for row, length in zip(values["table"], values["lengths"].tolist(), strict=True):
        for cache in (values["k_cache"], values["v_cache"]):
            cache[row[(length - 1) // 32], (length - 1) % 32 + 1 :] = float("nan")
        row[(length - 1) // 32 + 1 :] = -7
    assert torch.equal(interpret(KERNELS["paged_attention"].launch(ASCEND_910B, **values)), clean)


def test_nothing_to_attend_to_is_zero() -> None:
    values = arguments("paged_attention", TINY, 3, torch.bfloat16)
    values["lengths"][1] = 0
    check("paged_attention", values)
    assert not interpret(KERNELS["paged_attention"].launch(ASCEND_910B, **values))[1].any()
    values = arguments("attention", TINY, 3, torch.bfloat16)
    values["mask"][1] = False
    values["mask"][2, ..., :256] = False
    check("attention", values)
    assert not interpret(KERNELS["attention"].launch(ASCEND_910B, **values))[1].any()


def refusal(name: str, at: Geometry = TINY, causal: bool = False, **changed: torch.Tensor) -> str | None:
    values = {**arguments(name, at, 3, torch.bfloat16), **changed}
    tensors = {key: Layout.of(value) for key, value in values.items() if isinstance(value, torch.Tensor)}
    request = Request(
        PATTERNS[name], Variant(), tensors, {"scale": 0.25, "causal": causal}, (Layout.of(values["q"]),), 2, 2, 2.0
    )
    return KERNELS[name].limits(ASCEND_910B, request)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_what_the_kernels_refuse() -> None:
    assert refusal("attention") is None
    assert refusal("paged_attention") is None
    cases = {
        "2 queries of a sequence; the kernel takes 1": {"q": empty(3, 8, 2, 16)},
        "dtype torch.float32 is none of": {"q": empty(3, 8, 1, 16, dtype=torch.float32)},
        "operands of torch.bfloat16 and torch.float16": {"v": empty(3, 2, 317, 16, dtype=torch.float16)},
        "values of 32 channels, keys of 16": {"v": empty(3, 2, 317, 32)},
        "head_dim 264 exceeds 256": {"q": empty(3, 8, 1, 264)},
        "97 heads of one kv head exceed 96": {"q": empty(3, 194, 1, 16)},
        "262145 cached tokens exceed 262144": {"k": empty(3, 2, 262145, 16)},
        "a mask of shape (3, 8, 1, 317)": {"mask": empty(3, 8, 1, 317, dtype=torch.bool)},
        "a mask of torch.bfloat16": {"mask": empty(3, 1, 1, 317)},
    }
    assert refusal("attention", causal=True) == "a causal attention of one query sees one key"
    for reason, changed in cases.items():
        assert reason in (refusal("attention", **changed) or ""), reason
    assert "a block of 24 tokens is no multiple of 16" in (refusal("paged_attention", replace(TINY, block=24)) or "")
    large = replace(TINY, block=2048, cached=2048)
    assert "a block of 2048 tokens exceeds 1024" in (refusal("paged_attention", large) or "")


def test_a_decode_step_of_transformers_runs_through_the_kernel() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=2)
    given = decode_dynamic(model)
    report = Report()
    options = {"engine": "eager", "targets": ("pypto",), "only": ("attention",), "verify": True, "report": report}
    found = torch.compile(model, backend="glmfuse", options=options)(**fresh(given)).logits
    chosen = [row for row in report.rows() if row.pattern == "attention" and row.status == "chosen"]
    assert len(chosen) == 2
    expected = model(**fresh(given)).logits
    assert (found - expected).float().norm() / expected.float().norm() < 0.02
