"""What is left to the engine: every operator of a layer is fused or listed with its share of the cost."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch

import glmfuse
from glmfuse import Report
from glmfuse.report.left_over import NOTHING, Cost, LeftOver, total
from tests.support.glm import decode_static, fresh, tiny
from tests.support.graphs import Captured, capture, run_stages

LAYERS = 4
MOST = 0.05
"""Of a layer's weights and caches, what may be left over."""


def layer_of(module: str) -> str | None:
    found = re.match(r"model\.layers\.\d+", module)
    return found and found[0]


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
def test_every_operator_of_a_layer_is_fused_or_listed(experts: str) -> None:
    model = tiny(torch.bfloat16, experts=experts)
    report = Report()
    torch._dynamo.reset()
    options = {"engine": "eager", "report": report}
    with torch.no_grad():
        torch.compile(model, backend="glmfuse", options=options)(**fresh(decode_static(model)))
    (body,) = report.graphs[0].bodies
    left: dict[str, list[LeftOver]] = {}
    for entry in body.left_over:
        if (layer := layer_of(entry.module)) is not None:
            left.setdefault(layer, []).append(entry)
    held = held_by_layer(model)
    assert set(held) == {f"model.layers.{index}" for index in range(LAYERS)}
    for layer, bytes_held in held.items():
        assert total(left.get(layer, [])).held <= MOST * bytes_held, layer


def held_by_layer(model: Any) -> Counter[str]:
    """Bytes of each layer's weights, and of its caches."""
    held: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if (layer := layer_of(name)) is not None:
            held[layer] += weight.nbytes
    given = decode_static(model)
    given.pop("input_ids")
    (cache,) = given.values()
    for index, layer in enumerate(cache.layers):
        held[f"model.layers.{index}"] += layer.keys.nbytes + layer.values.nbytes
    return held


def one(function: Any, *inputs: torch.Tensor) -> list[LeftOver]:
    return list(run_stages(capture(function, *inputs)[0].module()).bodies[0].left_over)


def test_the_cost_of_operators() -> None:
    x, w, b = torch.randn(4, 8), torch.randn(3, 8), torch.randn(3)
    (entry,) = one(lambda x, w, b: torch.nn.functional.linear(x, w, b), x, w, b)
    assert entry.cost == Cost(bytes=4 * (32 + 24 + 3 + 12), held=4 * (32 + 24 + 3), flops=2 * 4 * 8 * 3)
    (entry,) = one(torch.exp, x)
    assert entry.cost == Cost(4 * 64, 4 * 32, 32)
    (entry,) = one(lambda ids, w: torch.nn.functional.embedding(ids, w), torch.tensor([1, 2]), w)
    assert entry.cost.held == 4 * 2 * 8 + 16  # two rows of the table, and the ids
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 16, 8)
    (entry,) = one(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v), q, k, k + 1)
    assert entry.cost.flops == 4 * 2 * 8 * 16
    assert not one(lambda x: x.view(2, 16), x)


def test_sizes_that_vary_add_no_guard() -> None:
    model = tiny(torch.bfloat16)
    ids = torch.randint(0, 256, (2, 7))
    torch._dynamo.mark_dynamic(ids, 0)
    torch._dynamo.mark_dynamic(ids, 1)
    captured: Captured = capture(model, input_ids=ids)[0]
    module = captured.module()
    env = next(n.meta["val"].node.shape_env for n in module.graph.nodes if isinstance(n.meta["val"], torch.SymInt))
    guards = len(env.guards)
    body = run_stages(module).bodies[0]
    assert len(env.guards) == guards
    assert body.cost.flops > total(body.left_over).flops > 0


def test_the_report_shows_it() -> None:
    model = tiny(torch.bfloat16)
    report = glmfuse.explain(model, **decode_static(model))
    text = str(report)
    (shown,) = re.findall(r"left to the engine: (\d+) operators, ([\d.]+)% of the bytes", text)
    (body,) = report.graphs[0].bodies
    assert int(shown[0]) == len(body.left_over)
    assert float(shown[1]) == pytest.approx(100 * total(body.left_over).share_of(body.cost)[0], abs=0.06)
    data = report.to_json()["graphs"][0]["bodies"][0]
    assert data["cost"]["held"] == body.cost.held
    assert {entry["node"] for entry in data["left_over"]} == {entry.node for entry in body.left_over}
    assert NOTHING.share_of(NOTHING) == (0, 0, 0)
