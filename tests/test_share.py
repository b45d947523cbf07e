"""What inlining puts in twice is computed once, where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from glmfuse.lowering.share import share

aten = torch.ops.aten
Build = Callable[[fx.Graph, fx.Node, Callable[..., fx.Node]], object]


def left(build: Build, inlined: bool = True) -> int:
    """How many exponentials are left of those that the graph calls."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    made: list[fx.Node] = []

    def call(op: Callable[..., object], *args: object) -> fx.Node:
        made.append(graph.call_function(op, args))
        return made[-1]

    graph.output(build(graph, x, call))
    share(graph, made if inlined else [])
    graph.lint()
    return sum(node.target is aten.exp.default for node in graph.nodes)


def twice(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    return call(aten.add.Tensor, call(aten.exp.default, x), call(aten.neg.default, call(aten.exp.default, x)))


def handed_out(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    return call(aten.exp.default, x), call(aten.exp.default, x)


def viewed_and_handed_out(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    return call(aten.view.default, call(aten.exp.default, x), [-1]), call(aten.t.default, call(aten.exp.default, x))


def written(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    changed = graph.call_function(aten.mul_.Tensor, (call(aten.exp.default, x), 2))
    return call(aten.add.Tensor, changed, call(aten.exp.default, x))


def read_before_and_after_a_write(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    before = call(aten.exp.default, x)
    graph.call_function(aten.mul_.Tensor, (x, 2))
    return call(aten.sub.Tensor, before, call(aten.exp.default, x))


def a_view_read_before_and_after(graph: fx.Graph, x: fx.Node, call: Callable[..., fx.Node]) -> object:
    before = call(aten.exp.default, call(aten.t.default, x))
    graph.call_function(aten.mul_.Tensor, (x, 2))
    return call(aten.sub.Tensor, before, call(aten.exp.default, call(aten.t.default, x)))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (twice, 1),
        (handed_out, 2),
        (viewed_and_handed_out, 2),
        (written, 2),
        (read_before_and_after_a_write, 2),
        (a_view_read_before_and_after, 2),
    ],
)
def test_equal_values_are_one_where_nobody_can_tell(build: Build, expected: int) -> None:
    assert left(build) == expected


def test_captured_nodes_are_left_alone() -> None:
    assert left(twice, inlined=False) == 2
