"""A pattern that nearly matches says where it stopped: stage, expected, found, node, and the model's line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from glmfuse.report.report import Row
from tests.support.glm import decode_static, tiny
from tests.support.graphs import Captured, capture, run_stages

aten = torch.ops.aten


def graph() -> Captured:
    model = tiny(torch.bfloat16, num_hidden_layers=2)
    return capture(model, **decode_static(model))[0]


def changed(edit: Callable[[fx.Graph], None], **options: Any) -> list[Row]:
    module = graph().module()
    edit(module.graph)
    return list(run_stages(module, **options).rows())


def nodes(graph: fx.Graph, op: Any) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is op]


def missed(rows: list[Row], pattern: str) -> Row:
    found = [row for row in rows if row.pattern == pattern and not row.is_site]
    assert found, f"no near miss of {pattern}"
    return max(found, key=lambda row: row.matched_terms / row.total_terms)


def gelu(graph: fx.Graph) -> None:
    nodes(graph, aten.silu.default)[0].target = aten.gelu.default


def eps_of_k_norm(graph: fx.Graph) -> None:
    eps = [node for node in nodes(graph, aten.add.Tensor) if node.args[1] == 1e-5]
    eps[2].update_arg(1, 2e-5)


def largest_off(graph: fx.Graph) -> None:
    final = nodes(graph, aten.topk.default)[-1]
    final.update_arg(3, False)


def mask_value(graph: fx.Graph) -> None:
    nodes(graph, aten.masked_fill.Scalar)[0].update_arg(2, 0.5)


def rotate_backwards(graph: fx.Graph) -> None:
    first = next(node for node in nodes(graph, aten.cat.default) if node.args[0][0].target is aten.neg.default)
    first.update_arg(0, list(reversed(first.args[0])))


def sqrt(graph: fx.Graph) -> None:
    nodes(graph, aten.rsqrt.default)[0].target = aten.sqrt.default


CASES = [
    (gelu, "swiglu", "aten.silu.default", "aten.gelu.default", "silu", "activations.py"),
    (gelu, "swiglu_mlp", "glmfuse.swiglu", "aten.mul.Tensor", "mul_15", "modeling_glm4_moe.py"),
    (eps_of_k_norm, "norm_qkv_rope", "eps, the same everywhere", "2e-05", "", "modeling_glm4_moe.py"),
    (largest_off, "route_topk", "True", "False", "topk_2", "modeling_glm4_moe.py"),
    (mask_value, "gate_topk", "glmfuse.route_topk.default", "", "", "modeling_glm4_moe.py"),
    (rotate_backwards, "rotary", "aten.neg.default", "aten.slice.Tensor", "slice_5", "modeling_glm4_moe.py"),
    (sqrt, "rms_norm", "aten.rsqrt.default", "aten.sqrt.default", "rsqrt", "modeling_glm4_moe.py"),
]


@pytest.mark.parametrize(
    ("edit", "pattern", "expected", "found", "node", "source"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES]
)
def test_a_near_miss_names_its_reason(
    edit: Callable[[fx.Graph], None], pattern: str, expected: str, found: str, node: str, source: str
) -> None:
    row = missed(changed(edit), pattern)
    assert row.stage == "STRUCTURE"
    assert expected in row.expected
    assert found in row.found
    assert node in row.node
    assert source in row.source
    assert ":" in row.source


def test_a_number_that_depends_on_sizes_is_told_by_the_proof() -> None:
    """What groups left out score is such a number, since older versions of transformers give them 0."""
    row = missed(changed(mask_value), "route_topk")
    assert (row.stage, row.code, row.node) == ("CHECK", "argument", "masked_fill")
    assert (row.expected, row.found) == ("aten.masked_fill.Scalar with 0.0", "0.5")


def test_the_captured_graph_itself_has_no_near_miss_of_a_block() -> None:
    rows = changed(lambda graph: None)
    assert not [row for row in rows if not row.is_site]


def test_one_wrong_site_leaves_the_others_fused() -> None:
    rows = changed(mask_value)
    chosen = [row.pattern for row in rows if row.status == "chosen"]
    assert chosen.count("norm_qkv_rope") == 2
    assert chosen.count("swiglu_mlp") == 2
    assert chosen.count("grouped_mlp") == 1
    assert chosen.count("moe") == 0
    assert chosen.count("gate_topk") == 0


def test_a_broken_constraint_shows_its_text() -> None:
    from glmfuse import pattern, require

    @pattern(dims={"x": "... H"})
    def even_sigmoid(x: torch.Tensor) -> torch.Tensor:
        """Sigmoid of sin, for even widths.  x [..., hidden] -> [..., hidden]."""
        return torch.sigmoid(torch.sin(x))

    @even_sigmoid.constraint
    def _(x: torch.Tensor) -> None:
        require(x.shape[-1] % 2 == 0, "hidden must be even", x.shape[-1])

    captured = capture(lambda x: torch.sigmoid(torch.sin(x)), torch.randn(2, 7))[0]
    (row,) = run_stages(captured.module(), patterns=(even_sigmoid,)).rows()
    assert (row.stage, row.code, row.expected, row.found) == ("CONSTRAINT", "constraint", "hidden must be even", "7")


def test_a_size_that_is_not_known_to_fit_refuses_the_site_and_adds_no_guard() -> None:
    from glmfuse import pattern

    @pattern(dims={"x": "T H"})
    def rows_of_four(x: torch.Tensor) -> torch.Tensor:
        """Exp of the rows in fours, where there are more than eight.  x [tokens, hidden] -> alike."""
        if x.shape[0] > 8:
            return torch.exp(torch.cos(x))
        return torch.cos(x)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.cos(x))

    x = torch.randn(12, 8)
    torch._dynamo.mark_dynamic(x, 0)
    captured = capture(model, x)[0]
    module = captured.module()
    env = next(n.meta["val"] for n in module.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)).node.shape_env
    before = len(env.guards)
    (row,) = run_stages(module, patterns=(rows_of_four,)).rows()
    assert (row.stage, row.code) == ("CHECK", "guard")
    assert "8" in row.expected
    assert len(env.guards) == before
