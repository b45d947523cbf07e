"""Graphs of older versions of transformers, as recorded: the sites expected, no bit changed, and near misses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import fx

from tests.support.expected import VERSIONS, check_counts
from tests.support.graphs import Captured, outputs_and_writes, run_stages, same_bits
from tests.support.mutants import MEANS_THE_SAME, hold
from tests.support.mutate import fused_mutant, mutations
from tests.support.recorded import read
from tests.test_routed_experts import last, put_in

aten = torch.ops.aten
FOLDER = Path(__file__).parent / "recorded"
KEYS = [pytest.param(*key, id="-".join(key)) for key in VERSIONS]


@cache
def recorded(version: str, case: str) -> Captured:
    return read(FOLDER / version / f"{case}.json")


def test_every_recorded_graph_is_expected() -> None:
    assert set(VERSIONS) == {(path.parent.name, path.stem) for path in FOLDER.glob("*/*.json")}


@pytest.mark.parametrize(("version", "case"), KEYS)
def test_a_version_matches_where_its_maths_is_the_same(version: str, case: str) -> None:
    check_counts(recorded(version, case), case, VERSIONS[version, case])


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.5.4"])
def test_a_zero_for_groups_left_out_is_told_by_the_proof(version: str) -> None:
    case = "prefill_router_groups" if version == "4.57.6" else "decode_groups"
    rows = run_stages(recorded(version, case).module()).rows()
    row = next(row for row in rows if row.pattern == "route_topk")
    assert (row.stage, row.expected, row.found) == ("CHECK", "aten.masked_fill.Scalar with -inf", "0.0")
    assert "modeling_glm4_moe.py" in row.source


def test_a_zero_for_groups_left_out_can_win() -> None:
    """Where a bias makes every choice negative: so -inf in its place is not the same."""
    graph = recorded("5.5.4", "decode_groups")
    zero, infinite = (graph.module() for _ in range(2))
    for module in (zero, infinite):
        bias = next(node for node in module.graph.nodes if node.target is aten.sigmoid.default).next
        assert bias.target is aten.add.Tensor
        bias.update_arg(1, put_in(bias, aten.sub.Scalar, bias.args[1], 9.0))
    last(infinite.graph, aten.masked_fill.Scalar).update_arg(2, float("-inf"))
    made = []
    for module in (zero, infinite):
        module.recompile()
        made.append(outputs_and_writes(module, graph.arguments()))
    assert not same_bits(*made)


def sentinel_of_the_last_expert(graph: fx.Graph) -> None:
    last(graph, aten.ge.Scalar).update_arg(1, 7)


def sentinel_of_other_ids(graph: fx.Graph) -> None:
    guard = last(graph, aten.ge.Scalar)
    guard.update_arg(0, put_in(guard, aten.add.Scalar, guard.args[0], 1))


def sentinel_below(graph: fx.Graph) -> None:
    last(graph, aten.ge.Scalar).target = aten.lt.Scalar


def one_expert_less(graph: fx.Graph) -> None:
    last(graph, aten.clamp.default).update_arg(2, 6)


def ids_from_elsewhere(graph: fx.Graph) -> None:
    """Ids that need the clamp: one of them may be past the end."""
    clamp = last(graph, aten.clamp.default)
    clamp.update_arg(0, put_in(clamp, aten.mul.Scalar, clamp.args[0], 2))


def other_tokens(graph: fx.Graph) -> None:
    tokens = [node for node in graph.nodes if node.target is aten.arange.default and node.args[0] == 2][-1]
    tokens.replace_all_uses_with(flipped := put_in(tokens.next, aten.flip.default, tokens, [0]))
    flipped.update_arg(0, tokens)


def back_in_another_order(graph: fx.Graph) -> None:
    last(graph, aten.sort.default).args = (last(graph, aten.sort.default).args[0], 0, True)


NEAR = [
    ("5.10.4", "decode_static", sentinel_of_the_last_expert),
    ("5.10.4", "decode_static", sentinel_of_other_ids),
    ("5.10.4", "decode_static", sentinel_below),
    ("5.16.1", "decode_batched", one_expert_less),
    ("5.16.1", "decode_batched", ids_from_elsewhere),
    ("5.5.4", "decode_batched", sentinel_of_the_last_expert),
    ("5.5.4", "decode_batched", other_tokens),
    ("5.5.4", "decode_static", other_tokens),
    ("5.0.0", "decode_static", other_tokens),
    ("5.0.0", "decode_static", back_in_another_order),
]


@pytest.mark.parametrize(("version", "case", "edit"), NEAR, ids=[f"{v}-{c}-{e.__name__}" for v, c, e in NEAR])
def test_a_near_miss_is_not_taken(version: str, case: str, edit: Callable[[fx.Graph], None]) -> None:
    report = fused_mutant(recorded(version, case), edit)
    assert report.count()["grouped_mlp"] == 0
    assert report.count()["gate_topk"] == 1


MUTATED = [("5.0.0", "decode_static"), ("5.5.4", "decode_batched"), ("5.10.4", "decode_static")]
STRIDE = 17
"""Of the mutants of a block moe, a few, to keep this short; all have been run."""

HARMLESS = {
    **MEANS_THE_SAME,
    r".* of aten.(ge.Scalar|clamp.default|masked_fill.Scalar)": "what never was filled or clamped still is not",
    r"literal 1 of aten.cumsum.default": "the last dimension of one is the first",
}


@pytest.mark.parametrize(("version", "case"), MUTATED, ids=[version for version, _ in MUTATED])
def test_a_mutant_is_never_mistaken(version: str, case: str) -> None:
    graph = recorded(version, case)
    body = run_stages(graph.module()).bodies[0]
    (block,) = [number for number, row in enumerate(body.rows) if row.pattern == "moe"]
    owned = {name for name, number in body.owner.items() if number == block}
    some = list(mutations(graph.graph_module.graph, owned))[::STRIDE]
    assert len(list(hold(graph, some, HARMLESS))) >= 5
