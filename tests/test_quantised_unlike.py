"""What is nearly a quantised pattern and is none: keyword by keyword, where is rounded, scaled, grouped and added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from glmfuse.backend import fusion_for
from glmfuse.canonicalize import canonicalize
from glmfuse.fuse import _TRACES
from glmfuse.matching.find import find
from glmfuse.options import Options
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.unlike import BF16, FAMILIES, FP32

_PRODUCTS: list[dict[str, Any]] = [
    {"tokens_first": True},
    {"bias_at": "before the scales"},
    {"bias_at": "between the scales"},
    {"rounded": "between the scales"},
    {"rounded": "before the bias"},
    {"one_token": True},
    {"shift": 128.0},
    {"scales_first": True},
]
UNLIKE: dict[str, list[dict[str, Any]]] = {
    "fp8_quantize": [
        {"largest": 240.0},
        {"largest": 447.0},
        {"stored": torch.float8_e5m2},
        {"over": None},
        {"held": False},
        {"none": 1.0},
        {"quotient": False},
        {"reciprocal": False},
        {"least": 1e-12},
        {"absolute": False},
    ],
    "fp8_linear": [*_PRODUCTS, {"wide": BF16}, {"wide": torch.float64}],
    "quant_linear": [*_PRODUCTS, {"wide": FP32}, {"wide": torch.int64}],
    "w4_linear": [
        {"low_first": False},
        {"signed": 0},
        {"signed": 7},
        {"side_by_side": False},
        {"scale_at": "sum"},
        {"in_order": False},
        {"token_at": "groups"},
        {"along_inputs": True},
    ],
    "split_w4_linear": [
        {"high_by": 8},
        {"low_less": 7},
        {"leaves_as": BF16},
        {"leaves_as": FP32},
        {"scaled": "after it leaves"},
        {"assist_at": "end"},
        {"assist_at": "nowhere"},
        {"in_order": False},
        {"upper_bits": True},
        {"low_first": False},
    ],
    "weight_only_linear": [
        {"offset_at": "after the scale"},
        {"offset_at": "nowhere"},
        {"taken_off": True},
        {"side_by_side": False},
        {"scale_at": "product"},
        {"rounded": False},
        {"in_half": True},
        {"bias_at": "rounded"},
        {"one_bias": True},
    ],
    "quant_grouped_mlp": [
        {"again": False},
        {"weighted": "bf16"},
        {"next_scale": True},
        {"up_first": True},
        {"rounded": False},
        {"by_tensor": True},
        {"activation": F.gelu},
    ],
    "norm_quantize": [
        {"reads": "sum"},
        {"rounded": False},
        {"zero_point": "after"},
        {"divide": True},
        {"dynamic": True},
        {"summed": "wide"},
    ],
    "norm_dynamic_quantize": [{"reads": "sum"}, {"rounded": False}, {"dynamic": False}, {"summed": "wide"}],
}


def takes_all(graph: Captured, name: str) -> bool:
    """Whether some site of the pattern reads what the graph is given, all of it and nothing else.

    A part of what was changed may be the pattern without a bias, or in fp32, of what was computed before.
    """
    given = {node for node in graph.graph_module.graph.nodes if node.op == "placeholder"}
    searched = fusion_for(Options()).searched(canonical := canonicalize(graph.graph_module.graph))
    sites = [site for site in find(canonical, searched, _TRACES).sites if site.match.pattern.name == name]
    return any({node for node in site.inputs.values() if node is not None} == given for site in sites)


def words(change: dict[str, Any]) -> str:
    return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in change.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_function_itself_is_the_pattern(name: str) -> None:
    """So the cases below fail by what they change, and not by how they are written."""
    function, draw, keywords = FAMILIES[name]
    graph = capture(lambda *given: function(*given, **keywords), *draw())[0]
    assert takes_all(graph, name)


@pytest.mark.parametrize(
    ("name", "change"),
    [pytest.param(name, change, id=f"{name}-{words(change)}") for name in UNLIKE for change in UNLIKE[name]],
)
def test_what_is_done_otherwise_is_no_such_pattern(name: str, change: dict[str, Any]) -> None:
    """And what is found of it all the same, fused, gives the bits of what was changed."""
    function, draw, keywords = FAMILIES[name]
    given = draw()
    graph = capture(lambda *given: function(*given, **{**keywords, **change}), *given)[0]
    assert not takes_all(graph, name)
    module = graph.module()
    run_stages(module)
    expected = outputs_and_writes(graph.module(), graph.arguments())
    assert same_bits(outputs_and_writes(module, graph.arguments()), expected)


@pytest.mark.parametrize("name", ["quant_linear", "fp8_linear"])
@pytest.mark.parametrize(("short", "words"), [(3, "per_token must have 6 numbers"), (4, "bias must have 6 numbers")])
def test_one_number_for_all_is_none_for_each(name: str, short: int, words: str) -> None:
    """Which is the same to torch, and not to a kernel."""
    function, draw, keywords = FAMILIES[name]
    given = [value[:1].clone() if place == short else value for place, value in enumerate(draw())]
    graph = capture(lambda *given: function(*given, **keywords), *given)[0]
    rows = [row for row in run_stages(graph.module()).rows() if row.pattern == name]
    assert any((row.stage, row.expected, row.found) == ("CONSTRAINT", words, "1") for row in rows)
