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
from tests.support.mutate import Mutation, mutate, mutations

GRAPHS = {
    "decode, bf16, groups": (torch.bfloat16, {"num_hidden_layers": 2, "n_group": 4, "topk_group": 2}, decode_static),
    "prefill, fp32, one group": (torch.float32, {"num_hidden_layers": 2}, prefill),
}
SHARDS, STRIDE = 4, 3
"""A third of the mutants run, over 300; the others differ from them in layer or size alone."""

MEANS_THE_SAME = {
    r"literal 1 of aten.add.Tensor": "eps of an RMSNorm is an argument of its op",
    r"literal 1 of aten.mul.Tensor": "the router's scale is an argument of its op",
    r"literal 1 of aten.topk.default": "top_k and topk_group are arguments of the router's op",
    r"literal 3 of aten.slice.Tensor": "an end past the size, moved by one, is still past the size",
    r"literal 1 of aten.unsqueeze.default": "a new dimension before one of size 1 is one behind it",
    r"extra user of .*": "an output of the op, or a view, cast or fill that stays for its outside user",
}
UNDEFINED = r"(literal . of aten.histc|extra user of aten.empty_like).default"
"""Mutants that read memory which nothing was written to: rows in no group, and places before there are any."""
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
    for mutation in all_mutations(name)[::STRIDE][shard::SHARDS]:
        mutant = None if re.fullmatch(UNDEFINED, mutation.kind) else mutate(graph, mutation)
        if mutant is None:
            continue
        try:
            expected = outputs_and_writes(mutant, graph.arguments())
        except (RuntimeError, IndexError):  # it only looked like a graph
            continue
        report = run_stages(mutant)
        mutant.recompile()
        assert same_bits(outputs_and_writes(mutant, graph.arguments()), expected), str(mutation)
        if mutation.node in report.bodies[0].owner:
            assert any(re.fullmatch(kind, mutation.kind) for kind in MEANS_THE_SAME), f"{mutation} was fused"
        kinds[mutation.kind] += 1
        shown[mutation.kind] += not same_bits(expected[: len(original)], original)
    assert kinds.total() >= 25
    assert len(kinds) >= 12
    for pattern in SHOWS:
        assert all(shown[kind] for kind in kinds if re.fullmatch(pattern, kind)), pattern
