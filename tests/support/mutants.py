"""Mutants of captured graphs held against what they compute themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.support.graphs import Captured, outputs_and_writes, run_stages, same_bits
from tests.support.mutate import Mutation, mutate

UNDEFINED = r"(literal . of aten.histc|extra user of aten.empty_like).default"
"""Mutants that read memory which nothing was written to: rows in no group, and places before there are any."""

MEANS_THE_SAME = {
    r"literal 1 of aten.add.Tensor": "eps of an RMSNorm is an argument of its op",
    r"literal 1 of aten.mul.Tensor": "the router's scale is an argument of its op",
    r"literal 1 of aten.topk.default": "top_k and topk_group are arguments of the router's op",
    r"literal 3 of aten.slice.Tensor": "an end past the size, moved by one, is still past the size",
    r"literal 1 of aten.unsqueeze.default": "a new dimension before one of size 1 is one behind it",
    r"extra user of .*": "an output of the op, or a view, cast or fill that stays for its outside user",
}
"""Mutations over which a site may be fused, and why."""


def hold(
    graph: Captured, chosen: Iterable[Mutation], harmless: Mapping[str, str]
) -> Iterator[tuple[Mutation, list[Any]]]:
    """Each of these mutants that runs, fused: the same to the bit as it was, which is what comes with it.

    A site may be fused over a changed node only where the change is a kind of `harmless`.
    """
    for mutation in chosen:
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
            assert any(re.fullmatch(kind, mutation.kind) for kind in harmless), f"{mutation} was fused"
        yield mutation, expected
