"""A body that many layers share is matched and rewritten once, and counted once for each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.glm4_moe import modeling_glm4_moe

from glmfuse import Report
from tests.support.glm import fresh, prefill, tiny
from tests.support.graphs import same_bits

LAYERS = 6


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    layer = modeling_glm4_moe.Glm4MoeDecoderLayer
    monkeypatch.setattr(layer, "forward", torch.compiler.nested_compile_region(layer.forward))
    return tiny(torch.float32, num_hidden_layers=LAYERS)


def run(model: Any, arguments: dict[str, Any], **options: Any) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend="glmfuse", fullgraph=True, options=options)(**fresh(arguments)).logits


def test_a_shared_body_is_fused_once_and_counted_for_each_call(model: Any) -> None:
    arguments = {**prefill(model), "use_cache": False}
    report = Report()
    found = run(model, arguments, engine="eager", report=report)
    assert same_bits([found], [run(model, arguments, engine="eager", only=())])
    main, body = report.graphs[0].bodies
    assert (main.calls, body.calls) == (1, LAYERS - 1)
    assert len([row for row in body.rows if row.pattern == "moe" and row.status == "chosen"]) == 1
    chosen = report.count("chosen")
    assert (chosen["norm_qkv_rope"], chosen["moe"], chosen["swiglu_mlp"]) == (LAYERS, LAYERS - 1, 1)
    assert (chosen["linear_add_rms_norm"], chosen["rms_norm"]) == (LAYERS, 1)  # the last sum is made inside the body


@pytest.mark.slow
def test_inductor_compiles_shared_bodies(model: Any) -> None:
    arguments = {**prefill(model), "use_cache": False}
    found = run(model, arguments, engine="inductor")
    expected = run(model, arguments, engine="eager")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
