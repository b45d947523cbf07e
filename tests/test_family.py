"""Members of the GLM family, and what is shared with others: the sites expected, and no bit changed."""

from __future__ import annotations

import pytest
import torch

from tests.support.expected import COLUMNS, FAMILY, Counts
from tests.support.family import MEMBERS, PHASES, member
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits

BLOCKS = ("norm_qkv_rope", "moe")


def test_every_member_is_expected() -> None:
    assert set(FAMILY) == {(name, phase) for name in MEMBERS for phase in PHASES}


@pytest.mark.parametrize(("name", "phase"), FAMILY, ids=[f"{name}-{phase}" for name, phase in FAMILY])
def test_a_member_matches_where_its_maths_is_the_same(name: str, phase: str) -> None:
    model = member(name)
    (captured,) = capture(model, **PHASES[phase](name, model))
    check_counts(captured, FAMILY[name, phase])


def check_counts(captured: Captured, expected: Counts) -> None:
    """So many sites, each block fused, and every output and written input as it was."""
    module = captured.module()
    report = run_stages(module)
    found, chosen = report.count(), report.count("chosen")
    assert {name: found[name] for name in COLUMNS} == dict(zip(COLUMNS, expected, strict=True))
    assert {name: chosen[name] for name in BLOCKS} == {name: found[name] for name in BLOCKS}
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert not any(value.isnan().any() for value in before if isinstance(value, torch.Tensor))
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)
