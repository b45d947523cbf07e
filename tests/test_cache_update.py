"""Updates of a cache in place: only where nobody can tell, and otherwise with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from glmfuse import Report
from tests.support.graphs import outputs_and_writes, run_stages, same_bits

POSITIONS = torch.tensor([3, 1])
IN_PLACE = "in place"


def cache() -> Tensor:
    return torch.randn(2, 2, 8, 4)


def rows() -> Tensor:
    return torch.randn(2, 2, 2, 4)


def step(k: Tensor, new: Tensor) -> Tensor:
    k.index_copy_(2, POSITIONS, new.sin())
    return k.sum(-1)


def returned(k: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k.index_copy_(2, POSITIONS, new)
    return k, k.sum(-1)


def new_value_kept(k: Tensor, new: Tensor) -> Tensor:
    made = k.index_copy(2, POSITIONS, new)
    k.copy_(made)
    return made


def view_of_new_value_kept(k: Tensor, new: Tensor) -> Tensor:
    made = k.index_copy(2, POSITIONS, new)
    k.copy_(made)
    return made[:, :, 1:4]


def old_read_before(k: Tensor, new: Tensor) -> Tensor:
    before = k.sum()
    k.index_copy_(2, POSITIONS, new)
    return k.sum() - before


def old_read_after(k: Tensor, new: Tensor) -> Tensor:
    made = k.index_copy(2, POSITIONS, new)
    difference = (made - k).abs().sum()
    k.copy_(made)
    return difference


def old_view_read_after(k: Tensor, new: Tensor) -> Tensor:
    first = k[:, :, :4]
    made = k.index_copy(2, POSITIONS, new)
    difference = (made[:, :, :4] - first).abs().sum()
    k.copy_(made)
    return difference


def rows_of_the_cache_itself(k: Tensor, new: Tensor) -> Tensor:
    k.index_copy_(2, POSITIONS, k[:, :, 4:6])
    return k.sum(-1) + new.sum()


def never_written_back(k: Tensor, new: Tensor) -> Tensor:
    return k.index_copy(2, POSITIONS, new).sum(-1)


def written_back_in_part(k: Tensor, new: Tensor) -> Tensor:
    made = k.index_copy(2, POSITIONS, new)
    k[:, :1].copy_(made[:, :1])
    return made.sum(-1)


def written_twice(k: Tensor, new: Tensor) -> Tensor:
    k.index_copy_(2, POSITIONS, new)
    k.index_copy_(2, POSITIONS + 1, new * 2)
    return k.sum(-1)


def changed_on_the_way_back(k: Tensor, new: Tensor) -> Tensor:
    made = k.index_copy(2, POSITIONS, new)
    k.copy_(made * 2)
    return made.sum(-1)


def filled_in_the_graph(k: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.zeros(2, 2, 8, 4), torch.zeros(2, 2, 8, 4)
    return first.index_copy_(2, POSITIONS, new), second.index_copy_(2, POSITIONS, k[:, :, :2])


def filled_and_read(k: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.zeros(2, 2, 8, 4)
    return first.index_copy(2, POSITIONS, new), first + k


def sliding(k: Tensor, new: Tensor) -> Tensor:
    """A window that is full: everything moves by one row."""
    k.copy_(torch.cat([k[:, :, 2:], new], dim=2))
    return k.sum(-1)


def rows_of_unlike_lengths(k: Tensor, new: Tensor) -> Tensor:
    """Each sequence has its own position."""
    k[torch.arange(2), :, POSITIONS] = new[:, :, 0]
    return k.sum(-1)


def run(function: Callable[..., Any], inputs: list[Tensor], **options: Any) -> tuple[list[Any], Report]:
    torch._dynamo.reset()
    report = Report()
    compiled = torch.compile(function, backend="glmfuse", options={"engine": "eager", "report": report, **options})
    with torch.no_grad():
        found = compiled(*inputs)
    return [*(found if isinstance(found, tuple) else (found,)), *inputs], report


def eager(function: Callable[..., Any], inputs: list[Tensor]) -> list[Any]:
    found = function(*inputs)
    return [*(found if isinstance(found, tuple) else (found,)), *inputs]


CASES: list[tuple[Callable[..., Any], str | None]] = [
    (step, IN_PLACE),
    (returned, IN_PLACE),  # what is returned is the input itself, after the graph
    (new_value_kept, "the old value is also read by copy"),
    (view_of_new_value_kept, "the old value is also read by copy"),
    (old_read_before, "the old value is also read by sum_1"),
    (old_read_after, "the old value is also read by sub"),
    (old_view_read_after, "the old value is also read by copy"),
    (rows_of_the_cache_itself, "rows lies in arg"),
    (never_written_back, "keeps its old value"),
    (written_back_in_part, "the old value is also read by slice_scatter"),
    (written_twice, "another tensor's memory"),
    (changed_on_the_way_back, "the old value is also read by copy"),
    (filled_in_the_graph, IN_PLACE),
    (filled_and_read, "the old value is also read by add"),
    (sliding, None),
    (rows_of_unlike_lengths, None),
]


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verify"])
@pytest.mark.parametrize(("function", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_cache_is_written_in_place_only_where_nobody_can_tell(
    function: Callable[..., Any], expected: str | None, verify: bool
) -> None:
    inputs = [cache(), rows()]
    before = [tensor.clone() for tensor in inputs]
    found, report = run(function, inputs, verify=verify)
    assert same_bits(found, eager(function, before))
    updates = [row for row in report.rows() if row.pattern == "cache_update"]
    if expected is None:
        assert not updates
    elif expected == IN_PLACE:
        assert {(row.status, row.target) for row in updates} == {("chosen", "aten")}
        assert "aten.copy_." not in report.graphs[0].bodies[0].fused
    else:
        assert all(row.status == "matched" for row in updates)
        assert any(expected in row.found for row in updates), [row.found for row in updates]


Build = Callable[[fx.Graph, fx.Node, fx.Node, fx.Node], Any]
aten = torch.ops.aten


def _updated(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> fx.Node:
    return graph.call_function(aten.index_copy.default, (k, 2, at, new))


def built(build: Build, *, stride: tuple[int, ...] | None = None) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph written by hand, as no front end of today makes it, with fake values, and inputs for it."""
    graph = fx.Graph()
    k, at, new = (graph.placeholder(name) for name in ("k", "at", "new"))
    graph.output(build(graph, k, at, new))
    module = fx.GraphModule({}, graph)
    inputs = [cache(), POSITIONS, rows()]
    if stride is not None:
        inputs[0] = torch.randn(2 * 2 * 8 * 4).as_strided((2, 2, 8, 4), stride)
    mode = FakeTensorMode()
    FakeTensorProp(module, mode).propagate_dont_convert_inputs(*(mode.from_tensor(x) for x in inputs))
    return module, inputs


def returns_new(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    return (made,)


def returns_view(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    return (graph.call_function(aten._unsafe_view.default, (made, [4, 8, 4])),)


def writes_new(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    return (graph.call_function(aten.sum.default, (graph.call_function(aten.mul_.Tensor, (made, 2)),)),)


def writes_back_twice(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    graph.call_function(aten.copy_.default, (k, graph.call_function(aten.neg.default, (made,))))
    return (graph.call_function(aten.sum.default, (made,)),)


def writes_something_else_back(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, graph.call_function(aten.neg.default, (made,))))
    return (graph.call_function(aten.sum.default, (made,)),)


def makes_it_twice(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made, again = _updated(graph, k, at, new), _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    return (graph.call_function(aten.sub.Tensor, (again, graph.call_function(aten.mean.default, (made,)))),)


def plain(graph: fx.Graph, k: fx.Node, at: fx.Node, new: fx.Node) -> Any:
    made = _updated(graph, k, at, new)
    graph.call_function(aten.copy_.default, (k, made))
    return (graph.call_function(aten.sum.default, (made,)),)


@pytest.mark.parametrize(
    ("build", "stride", "reason"),
    [
        (plain, None, ""),
        (plain, (64, 32, 1, 8), "lies in memory as"),
        (returns_new, None, "the new value is also returned"),
        (returns_view, None, "the new value is also returned"),
        (writes_new, None, "the new value is also written by mul_"),
        (writes_back_twice, None, "k is written 2 times"),
        (writes_something_else_back, None, "does not write the result, and nothing else, into k"),
        (makes_it_twice, None, "the result is made twice"),
    ],
    ids=lambda value: getattr(value, "__name__", "dense" if value is None else "strided" if value else "safe"),
)
def test_what_keeps_a_graph_from_writing_in_place(build: Build, stride: tuple[int, ...] | None, reason: str) -> None:
    (before, inputs), (module, _) = built(build, stride=stride), built(build, stride=stride)
    copies = [x.clone(memory_format=torch.preserve_format) for x in inputs]
    report = run_stages(module, targets=("aten",))
    (row,) = [row for row in report.rows() if row.pattern == "cache_update"]
    assert row.status == ("matched" if reason else "chosen")
    assert reason in row.found
    assert same_bits(outputs_and_writes(module, inputs), outputs_and_writes(before, copies))


def pair(kind: str, base: Tensor) -> tuple[Tensor, Tensor]:
    """Two caches out of one memory of twice their size."""
    first, second = base[:2], base[2:]
    return {
        "apart": (first.clone(), second.clone()),
        "side by side": (first, second),
        "the same": (first, first),
        "one memory": (first, first.view(2, 2, 8, 4)),
        "overlapping": (first, base[1:3]),
    }[kind]


def test_one_cache_for_two_layers() -> None:
    """However the two lie in memory, in turn, with what was compiled for the others still there."""

    def layers(first: Tensor, second: Tensor, new: Tensor) -> Tensor:
        return step(first, new) + step(second, new * 2)

    torch._dynamo.reset()
    compiled = torch.compile(layers, backend="glmfuse", options={"engine": "eager"})
    for kind in ("apart", "the same", "one memory", "overlapping", "side by side", "apart"):
        base, new = torch.randn(4, 2, 8, 4), rows()
        ours, theirs = pair(kind, base.clone()), pair(kind, base.clone())
        with torch.no_grad():
            found = compiled(*ours, new)
        assert same_bits([found, *ours], [layers(*theirs, new), *theirs]), kind


def test_a_slice_kept_by_the_caller_sees_the_update() -> None:
    k, new = cache(), rows()
    kept, other = k[:, :, 1:4], k.clone()
    found, report = run(step, [k, new])
    assert report.count("chosen")["cache_update"] == 1
    assert same_bits(found, eager(step, [other, new]))
    assert torch.equal(kept, other[:, :, 1:4])


def test_a_slice_of_the_cache_passed_beside_it() -> None:
    def both(k: Tensor, part: Tensor, new: Tensor) -> Tensor:
        k.index_copy_(2, POSITIONS, new)
        return part.sum() + k.sum()

    k, new = cache(), rows()
    other = k.clone()
    found, report = run(both, [k, k[:, :, 1:4], new])
    assert same_bits(found, eager(both, [other, other[:, :, 1:4], new]))
    assert not report.count("chosen")["cache_update"]


def test_a_quantised_cache() -> None:
    """Rows in 8 bits with a scale for each: both tensors are written in place."""

    def quantised(k: Tensor, scales: Tensor, new: Tensor) -> Tensor:
        scale = new.abs().amax(-1, keepdim=True) / 127
        k.index_copy_(2, POSITIONS, (new / scale).round().to(torch.int8))
        scales.index_copy_(2, POSITIONS, scale)
        return (k * scales).sum(-1)

    inputs = [torch.randint(-127, 128, (2, 2, 8, 4), dtype=torch.int8), torch.rand(2, 2, 8, 1), rows()]
    before = [x.clone() for x in inputs]
    found, report = run(quantised, inputs)
    assert report.count("chosen")["cache_update"] == 2
    assert same_bits(found, eager(quantised, before))
