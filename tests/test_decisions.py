"""What is fused when not everything can be: overlaps, cycles, escapes, fuel, only and disable."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch

from glmfuse import Gain
from glmfuse.matching.independent import heaviest
from glmfuse.report.report import GraphReport
from tests.support.glm import decode_static, tiny
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.toys import TOYS, target, toy_block


def decide(function: Callable[..., Any], inputs: int, **options: Any) -> GraphReport:
    """Fuse the graph of a function of so many tensors; the result must be the function's."""
    captured = capture(function, *(torch.randn(3, 8) for _ in range(inputs)))[0]
    module = captured.module()
    report = run_stages(module, **{"patterns": TOYS, **options})
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)
    return report


def chain(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.exp(torch.tanh(x * y + z))


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({"toy_mul_add": 3.0, "toy_add_tanh": 4.0}, {"toy_add_tanh"}),
        ({"toy_mul_add": 4.0, "toy_add_tanh": 3.0}, {"toy_mul_add"}),
        ({"toy_mul_add": 3.0, "toy_add_tanh": 5.0, "toy_tanh_exp": 3.0}, {"toy_mul_add", "toy_tanh_exp"}),
        ({"toy_mul_add": 3.0, "toy_add_tanh": 7.0, "toy_tanh_exp": 3.0}, {"toy_add_tanh"}),
        ({"toy_mul_add": 0.0, "toy_add_tanh": 0.25}, {"toy_add_tanh"}),
    ],
)
def test_overlapping_sites_are_chosen_by_their_total_gain(gains: dict[str, float], chosen: set[str]) -> None:
    report = decide(chain, 3, targets=[target(**gains)])
    assert set(report.count("chosen")) == chosen
    for row in report.rows():
        if row.status == "matched" and row.gain > 0:
            assert row.stage == "OVERLAP"
            assert any(name in row.found for name in chosen)


PARTS = {"toy_mul_add": 3.0, "toy_tanh_exp": 4.0}
WHOLE, EACH = {"toy_block"}, set(PARTS)
LAUNCHES = Gain.of_launches


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({**PARTS, "toy_block": 6.5}, EACH),
        ({**PARTS, "toy_block": 7.5}, WHOLE),
        ({**PARTS, "toy_block": Gain(8.0, 8.5, "over its parts", over_parts=True)}, WHOLE),
        ({**PARTS, "toy_block": Gain(8.5, 8.0, "over its parts", over_parts=True)}, EACH),
        ({"toy_mul_add": 9.0, "toy_block": Gain(8.0, 8.5, "over its parts", over_parts=True)}, WHOLE),
        ({"toy_mul_add": LAUNCHES(2, 1.0), "toy_tanh_exp": LAUNCHES(2, 1.0), "toy_block": LAUNCHES(4, 1.0)}, WHOLE),
        ({**PARTS, "toy_block": LAUNCHES(4, 1.0)}, WHOLE),
        ({"toy_mul_add": 0.001, "toy_tanh_exp": 0.9, "toy_block": LAUNCHES(2, 1.0)}, WHOLE),
        ({**PARTS, "toy_block": LAUNCHES(4, 1.0), "toy_add_tanh": 11.0}, WHOLE),
        ({**PARTS, "toy_block": Gain(8.0, 8.5, "over its parts", over_parts=True), "toy_add_tanh": 11.0}, WHOLE),
    ],
    ids=[
        "less than both", "more than both", "better than the kernels of both", "worse than the kernels of both",
        "one part has no kernel", "fewest launches", "launches, where parts are known better",
        "launches, where parts save less than these", "launches, where something else inside saves most",
        "better than whatever is inside",
    ],
)  # fmt: skip
def test_a_block_is_chosen_where_it_beats_the_kernels_of_its_parts(
    gains: dict[str, float | Gain], chosen: set[str]
) -> None:
    """A part's own gain is over the graph's operators; a block's may be over its parts, or by launches alone."""
    report = decide(chain, 3, targets=[target(**gains)], patterns=(*TOYS, toy_block))
    assert set(report.count("chosen")) == chosen


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    graph = nx.gnp_random_graph(12, draw.choice([0.1, 0.3, 0.6]), seed=seed)
    for vertex in graph:
        graph.nodes[vertex]["gain"] = draw.randint(1, 9) / 2
    gains = graph.nodes(data="gain")
    best = max(
        sum(gains[vertex] for vertex in subset)
        for size in range(13)
        for subset in itertools.combinations(graph, size)
        if not any(graph.has_edge(a, b) for a, b in itertools.combinations(subset, 2))
    )
    found = heaviest(graph)
    assert not any(graph.has_edge(a, b) for a, b in itertools.combinations(found, 2))
    assert sum(gains[vertex] for vertex in found) == best


def test_a_long_chain_of_overlaps_is_still_chosen_exactly() -> None:
    """Checked against dynamic programming; by cliques alone this would not end."""
    draw = random.Random(0)
    graph = nx.path_graph(400)
    gains = [draw.randint(1, 9) for _ in graph]
    nx.set_node_attributes(graph, dict(enumerate(gains)), "gain")
    with_last, without_last = 0, 0
    for gain in gains:
        with_last, without_last = without_last + gain, max(with_last, without_last)
    assert sum(gains[vertex] for vertex in heaviest(graph)) == max(with_last, without_last)


def crossed(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Two sites, each of which needs the first output of the other for its second."""
    a, b = torch.sin(x), torch.sin(y)
    return a, torch.cos(a) + torch.exp(b), b, torch.cos(b) + torch.exp(a)


def test_sites_convex_apart_and_cyclic_together_are_not_both_fused() -> None:
    report = decide(crossed, 2, targets=[target(toy_sin_cos=2.0)])
    assert report.count()["toy_sin_cos"] == 2
    assert report.count("chosen")["toy_sin_cos"] == 1
    (rejected,) = [row for row in report.rows() if row.status == "matched"]
    assert rejected.stage == "CYCLE"
    assert rejected.found.count("toy_sin_cos at") >= 2
    assert "exp" in rejected.found


def test_the_same_pair_uncrossed_is_fused_twice() -> None:
    def parallel(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = torch.sin(x), torch.sin(y)
        return a, torch.cos(a) + torch.exp(x), b, torch.cos(b) + torch.exp(a)

    report = decide(parallel, 2, targets=[target(toy_sin_cos=2.0)])
    assert report.count("chosen")["toy_sin_cos"] == 2


def through_itself(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a = torch.sin(x)
    return a, torch.cos(a) + torch.exp(a)


def test_a_site_that_feeds_itself_from_outside_is_not_fused() -> None:
    report = decide(through_itself, 1, targets=[target(toy_sin_cos=2.0)])
    (row,) = [row for row in report.rows() if row.pattern == "toy_sin_cos"]
    assert (row.status, row.stage) == ("matched", "CYCLE")


def test_an_inner_value_with_a_live_outside_user_escapes() -> None:
    def leaking(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        product = x * y
        return product + z, product

    report = decide(leaking, 3, targets=[target(toy_mul_add=2.0)])
    (row,) = [row for row in report.rows() if row.pattern == "toy_mul_add"]
    assert (row.status, row.stage, row.code) == ("matched", "ESCAPE", "escape")
    assert row.node == "mul"
    assert "output" in row.found


def test_a_cheap_inner_value_with_an_outside_user_stays_behind() -> None:
    model = tiny(torch.bfloat16)
    captured = capture(model, **decode_static(model))[0]
    module = captured.module()
    wide = next(node for node in module.graph.nodes if "_to_copy" in node.name and len(node.users) == 2)
    output = next(iter(reversed(module.graph.nodes)))
    output.args = ([*output.args[0], wide],)
    module.recompile()
    expected = outputs_and_writes(module, captured.arguments())
    report = run_stages(module)
    assert report.count("chosen")["norm_qkv_rope"] == 4
    assert same_bits(outputs_and_writes(module, captured.arguments()), expected)
    assert wide in module.graph.nodes


@pytest.mark.parametrize("fuel", [0, 1, 5])
def test_fuel_fuses_only_the_first_sites(fuel: int) -> None:
    model = tiny(torch.bfloat16)
    captured = capture(model, **decode_static(model))[0]
    module = captured.module()
    report = run_stages(module, fuel=fuel)
    assert report.count("chosen").total() == fuel
    assert any(row.code == "fuel" for row in report.rows())
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


def test_only_keeps_what_a_block_calls_and_fuses_nothing_else() -> None:
    model = tiny(torch.bfloat16)
    report = run_stages(capture(model, **decode_static(model))[0].module(), only=("gate_topk",))
    assert dict(report.count("chosen")) == {"gate_topk": 3}
    assert dict(report.count()) == {"gate_topk": 3}


def test_a_disabled_block_releases_its_parts() -> None:
    model = tiny(torch.bfloat16)
    report = run_stages(capture(model, **decode_static(model))[0].module(), disable=("norm_qkv_rope",))
    chosen = report.count("chosen")
    assert chosen["norm_qkv_rope"] == 0
    assert (chosen["linear_add_rms_norm"], chosen["add_rms_norm"], chosen["rms_norm"]) == (4, 4, 9)
    assert chosen["rotary"] == 8
