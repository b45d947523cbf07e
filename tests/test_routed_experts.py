"""Routed experts with one thing wrong: no block takes them, and no bit of the mutant changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx

from tests.support.glm import decode_static, tiny
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.mutate import fused_mutant

aten = torch.ops.aten
Edit = Callable[[fx.Graph], None]


@cache
def captured(experts: str) -> Captured:
    """A decode step with one mixture of experts, 2 tokens and 2 experts for each."""
    model = tiny(torch.bfloat16, num_hidden_layers=2, experts=experts)
    with torch.no_grad():
        torch._dynamo.reset()
        return capture(model, **decode_static(model))[0]


def last(graph: fx.Graph, op: Any, back: int = 1) -> fx.Node:
    return [node for node in graph.nodes if node.target is op][-back]


def put_in(before: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Make a node there."""
    with before.graph.inserting_before(before):
        return before.graph.call_function(op, args, kwargs)


def silu(graph: fx.Graph) -> fx.Node:
    return last(graph, aten.silu.default, 2)


def gelu(graph: fx.Graph) -> None:
    silu(graph).target = aten.gelu.default


def up_before_gate(graph: fx.Graph) -> None:
    gate = silu(graph)
    (product,) = gate.users
    first, up = gate.args[0], product.args[1]
    gate.update_arg(0, up)
    product.update_arg(1, first)


def no_weights(graph: fx.Graph) -> None:
    product = next(node for node in reversed(graph.nodes) if _is_weighting(node))
    product.update_arg(1, put_in(product, aten.ones_like.default, product.args[1]))


def _is_weighting(node: fx.Node) -> bool:
    if node.target is not aten.mul.Tensor:
        return False
    return isinstance(node.args[1], fx.Node) and node.args[1].target is aten.unsqueeze.default and _is_wide(node)


def _is_wide(node: fx.Node) -> bool:
    return node.meta["val"].dtype == torch.float32 and node.meta["val"].shape == (4, 64)


def weights_unsorted(graph: fx.Graph) -> None:
    taken = next(node for node in graph.nodes if node.target is aten.index.Tensor and node.meta["val"].dim() == 1)
    taken.replace_all_uses_with(taken.args[0])  # type: ignore[arg-type]


def sum_over_tokens(graph: fx.Graph) -> None:
    combine = next(node for node in reversed(graph.nodes) if node.target is aten.sum.dim_IntList)
    combine.update_arg(1, [0])


def sum_after_rounding(graph: fx.Graph) -> None:
    combine = next(node for node in reversed(graph.nodes) if node.target is aten.sum.dim_IntList)
    combine.update_arg(0, put_in(combine, aten._to_copy.default, combine.args[0], dtype=torch.bfloat16))


def last_first(graph: fx.Graph) -> None:
    sort = last(graph, aten.sort.default)
    sort.args = (sort.args[0], 0, True)


def ends_of_other_experts(graph: fx.Graph) -> None:
    ends = last(graph, aten.cumsum.default)
    ends.update_arg(0, put_in(ends, aten.flip.default, ends.args[0], [0]))


def ends_of_unlike_experts_below(graph: fx.Graph) -> None:
    down = last(graph, aten._grouped_mm.default)
    down.update_arg(2, put_in(down, aten.clamp_min.default, down.args[2], 2))


def wider_counts(graph: fx.Graph) -> None:
    last(graph, aten.histc.default).update_arg(3, 9)


def a_token_left_out(graph: fx.Graph) -> None:
    token = last(graph, aten.floor_divide.default)
    (rows,) = token.users
    rows.update_arg(1, [put_in(rows, aten.clamp_max.default, token, 0)])


def rows_of_other_tokens(graph: fx.Graph) -> None:
    last(graph, aten.floor_divide.default).target = aten.remainder.Scalar


def left_sorted(graph: fx.Graph) -> None:
    put = last(graph, aten.index_put.default)
    put.replace_all_uses_with(put.args[1][0])  # type: ignore[index]


def down_of_other_experts(graph: fx.Graph) -> None:
    gathered = last(graph, aten.index.Tensor)
    (ids,) = gathered.args[1]  # type: ignore[misc]
    gathered.update_arg(1, [put_in(gathered, aten.flip.default, ids, [0])])


def rows_in_turn(graph: fx.Graph) -> None:
    first = last(graph, aten.bmm.default, 2)
    column = first.args[1]
    first.update_arg(1, put_in(first, aten.flip.default, column, [0]))


def shared_taken_off(graph: fx.Graph) -> None:
    mixture(graph).target = aten.sub.Tensor


def shared_twice(graph: fx.Graph) -> None:
    mixture(graph).update_kwarg("alpha", 2)


def routed_negated(graph: fx.Graph) -> None:
    total = mixture(graph)
    routed = total.args[0]
    total.update_arg(0, put_in(total, aten.neg.default, routed))


def weights_doubled(graph: fx.Graph) -> None:
    scaled = next(node for node in reversed(graph.nodes) if node.target is aten.mul.Tensor and node.args[1] == 2.5)
    (flat,) = scaled.users
    flat.update_arg(0, put_in(flat, aten.mul.Tensor, scaled, scaled))


def mixture(graph: fx.Graph) -> fx.Node:
    """The sum of routed and shared experts: the first argument of the residual sum before the last norm."""
    sums = [node for node in graph.nodes if node.target is aten.add.Tensor and isinstance(node.args[1], fx.Node)]
    return sums[-2]


NOTHING, EXPERTS = {"grouped_mlp": 0, "moe": 0}, {"grouped_mlp": 1, "moe": 0}
BOTH = ("grouped_mm", "batched_mm")
CASES = [
    *[(edit, experts, NOTHING) for edit in (gelu, up_before_gate, no_weights, sum_over_tokens, sum_after_rounding)
      for experts in BOTH],
    *[(edit, "grouped_mm", NOTHING) for edit in (
        weights_unsorted, last_first, ends_of_other_experts, ends_of_unlike_experts_below, wider_counts,
        a_token_left_out, rows_of_other_tokens, left_sorted)],
    *[(edit, "batched_mm", NOTHING) for edit in (down_of_other_experts, rows_in_turn)],
    *[(edit, experts, EXPERTS) for edit in (shared_taken_off, shared_twice, routed_negated, weights_doubled)
      for experts in BOTH],
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "experts", "chosen"), CASES, ids=[f"{edit.__name__}-{experts}" for edit, experts, _ in CASES]
)
def test_a_near_miss_is_not_taken(edit: Edit, experts: str, chosen: dict[str, int]) -> None:
    report = fused_mutant(captured(experts), edit)
    assert {name: report.count("chosen")[name] for name in chosen} == chosen
    assert report.count("chosen")["norm_qkv_rope"] == 2


@pytest.mark.parametrize("experts", BOTH)
def test_the_experts_alone_are_found_where_the_block_is_off(experts: str) -> None:
    module = captured(experts).module()
    report = run_stages(module, disable=("moe",))
    assert {name: report.count("chosen")[name] for name in ("grouped_mlp", "gate_topk", "swiglu_mlp")} == {
        "grouped_mlp": 1,
        "gate_topk": 1,
        "swiglu_mlp": 2,
    }
    expected = outputs_and_writes(captured(experts).module(), captured(experts).arguments())
    assert same_bits(outputs_and_writes(module, captured(experts).arguments()), expected)


@pytest.mark.parametrize(("experts", "operator"), [("grouped_mm", "_grouped_mm"), ("batched_mm", "bmm")])
def test_the_reference_keeps_the_operator_that_it_found(experts: str, operator: str) -> None:
    module = captured(experts).module()
    report = run_stages(module)
    (row,) = [row for row in report.rows() if row.pattern == "moe"]
    assert row.status == "chosen"
    assert len([node for node in module.graph.nodes if operator in str(node.target)]) == 2
