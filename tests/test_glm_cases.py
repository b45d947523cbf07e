"""The main job: every dtype, phase and experts implementation of a tiny GLM-4.5, static and dynamic."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch._ops import OpOverload

from glmfuse.matching.escape import is_cheap
from glmfuse.report.report import GraphReport
from tests.support.glm import DTYPES, PHASES, Phase, tiny
from tests.support.graphs import Captured, capture, listing, outputs_and_writes, run_stages, same_bits

LAYERS, DENSE = 3, 1
EXPECTED = {
    "norm_qkv_rope": LAYERS,
    "moe": LAYERS - DENSE,
    "swiglu_mlp": DENSE,
    "gate_topk": 0,
    "grouped_mlp": 0,
    "linear_add_rms_norm": LAYERS,
    "add_rms_norm": 1,
}
"""Fused sites: every layer's front, output projection with the second norm, experts or MLP; and the last norm."""

SHARED = {
    "aten.where.self": LAYERS - 1,
    "aten.scalar_tensor.default": 2 * (LAYERS - 1),
    "aten.arange.default": LAYERS - DENSE - 1,
}
"""Operators that every layer repeats in the captured graph, and that inlining makes once."""

INSIDE = {"gate_topk": LAYERS - DENSE, "grouped_mlp": LAYERS - DENSE, "swiglu_mlp": LAYERS}
"""Sites found, those that a larger one takes counted too: every router, routed experts, MLP or shared expert."""


def shallow(dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A tiny model with a dense layer, and as many others as it takes for one behind another."""
    return tiny(dtype, **{"num_hidden_layers": LAYERS, **overrides})


CASES = [
    pytest.param(dtype, phase, experts, dynamic, id=f"{str(dtype)[6:]}-{phase.name}-{experts}-{kind}")
    for dtype, phase, experts in itertools.product(DTYPES, PHASES, ("grouped_mm", "batched_mm"))
    for kind, dynamic in (("static", False), ("dynamic", True))
    if phase.may_be_dynamic or not dynamic
]


@pytest.mark.parametrize(("dtype", "phase", "experts", "dynamic"), CASES)
def test_every_layer_fuses_and_no_bit_changes(dtype: torch.dtype, phase: Phase, experts: str, dynamic: bool) -> None:
    model = shallow(dtype, experts=experts)
    graphs = capture(model, **phase.arguments(model, dynamic))
    assert len(graphs) == 1
    (captured,) = graphs
    assert _has_symbols(captured) == dynamic
    check_fused(captured)
    _check_disabled(captured)


def _has_symbols(captured: Captured) -> bool:
    return any(isinstance(node.meta.get("val"), torch.SymInt) for node in captured.graph_module.graph.nodes)


def check_fused(captured: Captured) -> GraphReport:
    """Every site asked for is fused, and no bit of the outputs or written inputs differs."""
    module = captured.module()
    report = run_stages(module)
    chosen = report.count("chosen")
    assert {name: chosen[name] for name in EXPECTED} == EXPECTED
    found = report.count()
    assert {name: found[name] for name in INSIDE} == INSIDE
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)
    return report


def _check_disabled(captured: Captured) -> None:
    module = captured.module()
    report = run_stages(module, only=())
    assert not report.count()
    assert listing(module.graph) == listing(captured.graph_module.graph)


def test_a_table_row_says_why_a_phase_has_no_dynamic_case() -> None:
    refused = [phase for phase in PHASES if not phase.may_be_dynamic]
    assert [phase.name for phase in refused] == ["decode_static"]
    model = shallow()
    arguments = refused[0].arguments(model, False)
    torch._dynamo.mark_dynamic(arguments["input_ids"], 0)
    with pytest.raises(Exception, match="specialized it to be a constant"):
        capture(model, **arguments)


def test_fusing_with_the_reference_adds_no_operator() -> None:
    """Whatever a site replaces is gone: the inlined pattern functions compute no more than the captured graph.

    And no less, but for what all layers share: the mask, and the number of each row.
    """
    model = shallow(torch.bfloat16)
    captured = capture(model, **PHASES[2].arguments(model, False))[0]
    module = captured.module()
    run_stages(module)
    before, after = (_computing(graph) for graph in (captured.graph_module.graph, module.graph))
    assert after <= before
    assert {name: before[name] - after[name] for name in before - after} == SHARED


def _computing(graph: torch.fx.Graph) -> Counter[str]:
    return Counter(
        str(node.target) for node in graph.nodes if isinstance(node.target, OpOverload) and not is_cheap(node)
    )
