"""Layers of each quantised scheme with one thing changed, mechanically: the fused mutant is the mutant, to the bit."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from transformers.models.glm4_moe.modeling_glm4_moe import apply_rotary_pos_emb

from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.mutants import MEANS_THE_SAME, hold
from tests.support.mutate import mutations
from tests.support.quantised_layer import FORMS, SCHEMES, Layer, call
from tests.support.unlike import FAMILIES

HARMLESS = {
    kind: MEANS_THE_SAME[kind]
    for kind in (
        r"literal 1 of aten.add.Tensor",
        r"literal 3 of aten.slice.Tensor",
        r"literal 1 of aten.unsqueeze.default",
        r"extra user of .*",
    )
}


class Piece(nn.Module):
    """Both ends of a layer: up to queries, keys and values, and a feed-forward layer."""

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.layer = Layer(scheme, FORMS["merged"])

    def forward(self, x: Tensor, residual: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        total = x + residual
        q, k, v = self.layer.projected(self.layer.norms[0](total))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        return q, k, v, total, self.layer.mlp.shared(x)


@pytest.mark.parametrize(("place", "scheme"), enumerate(SCHEMES))
def test_mutants_of_a_scheme_are_not_mistaken(place: int, scheme: str) -> None:
    """Every other kind of mutation once; schemes next to each other in the table take turns with them."""
    graph = capture(Piece(scheme), *call())[0]
    report = run_stages(graph.module())
    assert dict(report.count("chosen")) == {f"norm_qkv_rope_{scheme}": 1, f"swiglu_mlp_{scheme}": 1}
    original = outputs_and_writes(graph.module(), graph.arguments())
    one_each = {made.kind: made for made in mutations(graph.graph_module.graph, report.bodies[0].owner)}
    chosen = list(one_each.values())[place % 2 :: 2]
    run = 0
    unlike = 0
    for _, expected in hold(graph, chosen, HARMLESS):
        run += 1
        unlike += not same_bits(expected[: len(original)], original)
    assert run >= 20
    assert unlike > run // 3


def test_mutants_of_a_layer_with_quantised_weights_alone_are_not_mistaken() -> None:
    function, draw, _ = FAMILIES["weight_only_linear"]
    graph = capture(function, *draw())[0]
    every = mutations(graph.graph_module.graph, {node.name for node in graph.graph_module.graph.nodes})
    harmless = {kind: HARMLESS[kind] for kind in (r"extra user of .*",)}
    assert sum(1 for _ in hold(graph, every, harmless)) > 20
