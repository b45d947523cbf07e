"""Graphs with one thing changed: the fused mutant is the mutant, to the bit.

A pattern may be chosen over a changed node only where the change is an argument of its op or leaves its
meaning alone; MEANS_THE_SAME says which and why.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest
import torch

from tests.support.glm import decode_static, prefill, tiny
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.mutants import MEANS_THE_SAME, hold
from tests.support.mutate import Mutation, mutations

GRAPHS = {
    "decode, bf16, groups": (torch.bfloat16, {"num_hidden_layers": 2, "n_group": 4, "topk_group": 2}, decode_static),
    "prefill, fp32, one group": (torch.float32, {"num_hidden_layers": 2}, prefill),
}
SHARDS, STRIDE = 4, 3
"""A third of the mutants run, over 300; the others differ from them in layer or size alone."""

SHOWS = (r"literal 1 of aten.add.Tensor", r"literal 1 of aten.mul.Tensor", r"literal 2 of aten.masked_fill.*")
"""Mutations whose effect the inputs must be drawn to show: eps, scale, mask value."""


@cache
def captured(name: str) -> Captured:
    dtype, overrides, phase = GRAPHS[name]
    model = tiny(dtype, **overrides)
    with torch.no_grad():
        torch._dynamo.reset()
        return capture(model, **phase(model))[0]


@cache
def all_mutations(name: str) -> list[Mutation]:
    """Of every node that a fused site replaces."""
    owned = run_stages(captured(name).module()).bodies[0].owner
    return list(mutations(captured(name).graph_module.graph, owned))


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", GRAPHS)
def test_a_mutant_is_never_mistaken(name: str, shard: int) -> None:
    graph = captured(name)
    original = outputs_and_writes(graph.module(), graph.arguments())
    kinds: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    some = all_mutations(name)[::STRIDE][shard::SHARDS]
    for mutation, expected in hold(graph, some, MEANS_THE_SAME):
        kinds[mutation.kind] += 1
        shown[mutation.kind] += not same_bits(expected[: len(original)], original)
    assert kinds.total() >= 25
    assert len(kinds) >= 12
    for pattern in SHOWS:
        assert all(shown[kind] for kind in kinds if re.fullmatch(pattern, kind)), pattern
