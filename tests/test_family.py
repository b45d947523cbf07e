"""Members of the GLM family, and what is shared with others: the sites expected, and no bit changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import fx

from tests.support.expected import FAMILY, check_counts
from tests.support.family import MEMBERS, PHASES, member
from tests.support.graphs import Captured, capture
from tests.support.mutate import fused_mutant
from tests.test_routed_experts import last

aten = torch.ops.aten


def test_every_member_is_expected() -> None:
    assert set(FAMILY) == {(name, phase) for name in MEMBERS for phase in PHASES}


@pytest.mark.parametrize(("name", "phase"), FAMILY, ids=[f"{name}-{phase}" for name, phase in FAMILY])
def test_a_member_matches_where_its_maths_is_the_same(name: str, phase: str) -> None:
    model = member(name)
    (captured,) = capture(model, **PHASES[phase](name, model))
    check_counts(captured, phase, FAMILY[name, phase])


@cache
def dense() -> Captured:
    """A prompt through the dense GLM, whose rotary turns neighbours."""
    return capture(member("glm"), **PHASES["prefill"]("glm", member("glm")))[0]


def neighbours_swapped(graph: fx.Graph) -> None:
    pair = last(graph, aten.stack.default)
    pair.update_arg(0, list(reversed(pair.args[0])))  # type: ignore[call-overload]


def neighbours_one_behind_the_other(graph: fx.Graph) -> None:
    last(graph, aten.stack.default).update_arg(1, -2)


def one_neighbour_twice(graph: fx.Graph) -> None:
    negated = last(graph, aten.stack.default).args[0][0]  # type: ignore[index]
    negated.args[0].update_arg(2, 0)


def no_sign(graph: fx.Graph) -> None:
    last(graph, aten.neg.default).target = aten.abs.default


@pytest.mark.parametrize("edit", [neighbours_swapped, neighbours_one_behind_the_other, one_neighbour_twice, no_sign])
def test_another_rotary_of_neighbours_is_not_taken(edit: Callable[[fx.Graph], None]) -> None:
    report = fused_mutant(dense(), edit)
    assert report.count()["rotary"] == 3
    assert report.count("chosen")["norm_qkv_rope"] == 1
