"""Capture and replay of the fake device through torch_npu's own NPUGraph: a capture computes nothing, a replay all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.offline_ascend.standin import StandInError
from tests.offline_ascend.standin.log import record


def captured(function, *args: Tensor) -> tuple[torch.npu.NPUGraph, Tensor]:
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = function(*args)
    return graph, result


def test_a_capture_launches_nothing_and_each_replay_computes_anew() -> None:
    x = torch.randn(4, 5)
    on_npu = x.npu()
    with record() as seen:
        graph, y = captured(lambda x: (x * 2.5).relu().sum(-1), on_npu)
    assert seen.captured == ["aten.mul.Tensor", "aten.relu.default", "aten.sum.dim_IntList"]
    assert seen.launched == []
    for shift in torch.randn(3):
        on_npu.copy_(x + shift)
        with record() as seen:
            graph.replay()
        assert (seen.replays, seen.launched, seen.allocated) == (1, [], 0)
        assert torch.equal(y.cpu(), ((x + shift) * 2.5).relu().sum(-1))


def test_a_replay_writes_where_the_capture_wrote() -> None:
    total, x = torch.randn(3), torch.randn(3)
    on_npu, addend = total.npu(), x.npu()
    graph, _ = captured(lambda a, b: a.add_(b), on_npu, addend)
    assert torch.equal(on_npu.cpu(), total)
    graph.replay()
    graph.replay()
    assert torch.equal(on_npu.cpu(), total + x + x)


def test_graphs_live_side_by_side() -> None:
    x = torch.randn(6)
    on_npu = x.npu()
    first, a = captured(lambda x: x.exp(), on_npu)
    second, b = captured(lambda x: x.sin(), on_npu)
    second.replay()
    first.replay()
    assert torch.equal(a.cpu(), x.exp())
    assert torch.equal(b.cpu(), x.sin())


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.copy_(torch.randn(4))])
def test_the_host_cannot_be_read_or_written_in_a_capture(read) -> None:
    x = torch.randn(4).npu()
    with pytest.raises((StandInError, RuntimeError), match="while a graph is captured"):
        captured(read, x)


def test_overlap_is_refused_at_capture() -> None:
    """The Meta kernel that runs then knows no addresses; torch_npu looks at them before it launches."""
    c = torch.randn(9).npu()
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        captured(lambda c: c[1:].sub_(c[:-1]), c)


def attended(query: Tensor, key: Tensor, lengths: list[int], out: list[Tensor]) -> None:
    torch.ops.npu.npu_fused_infer_attention_score.out(
        query, key, key, num_heads=2, input_layout="BNSD", actual_seq_lengths_kv=lengths, out=out
    )


def test_a_replay_waits_for_the_update_of_its_tasks() -> None:
    query, key = torch.randn(1, 2, 1, 16, dtype=torch.bfloat16), torch.randn(1, 2, 9, 16, dtype=torch.bfloat16)
    out, stream = [torch.empty_like(query).npu(), torch.empty(0, device="npu")], torch.npu.current_stream()
    on_npu, event, graph = (query.npu(), key.npu()), torch.npu.ExternalEvent(), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        inner = torch.npu.current_stream()
        event.wait(inner)
        event.reset(inner)
        torch.npu.graph_task_group_begin(inner)
        attended(*on_npu, [9], out)
        handle = torch.npu.graph_task_group_end(inner)
    for length in (4, 7):
        graph.replay()
        with pytest.raises(StandInError, match="waits for an event"):
            out[0] + 1
        torch.npu.graph_task_update_begin(stream, handle)
        attended(*on_npu, [length], out)
        torch.npu.graph_task_update_end(stream)
        event.record(stream)
        expected = [torch.empty_like(query), torch.empty(0)]
        attended(query, key, [length], expected)
        assert torch.equal(out[0].cpu(), expected[0])
