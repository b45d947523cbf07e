"""A PyPTO launch on npu tensors: stream, device, capture, formats, and its way through npugraph_ex.

The real torch_npu over stand-ins for CANN, with a jit function made up: PyPTO's own launch ran nowhere, and that a
capture is legal on a chip is not shown by this. What is shown is all that surrounds the launch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch_npu
from torch import Tensor

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto.launch import npu
from glmfuse.lowering.pypto.launch.formats import FRACTAL_NZ
from glmfuse.lowering.pypto.launch.launch import Launch
from glmfuse.lowering.pypto.launch.npu import launch_on_npu
from glmfuse.lowering.pypto.process import KernelRef
from tests.offline_ascend.standin.log import record
from tests.support.jit import FakeJit

Build = Callable[..., FakeJit]


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJit]:
    """In the place of every kernel: three times its first input, and which stream was current."""
    made = FakeJit(lambda x, *_: x * 3, lambda *_: torch.npu.current_stream().npu_stream)
    building = ModuleType("glmfuse.lowering.pypto.build")
    building.build = lambda kernel: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, building.__name__, building)
    monkeypatch.setattr(npu, "_LAUNCHED", set())
    return made


def tripling(x: Tensor, *others: Tensor, matrices: frozenset[int] = frozenset()) -> Launch:
    outputs = ((tuple(x.shape), x.dtype),)
    return Launch(KernelRef.of("none:build"), (x, *others), outputs, lambda made: made[0], matrices)


def nz_weight(rows: int, columns: int) -> Tensor:
    """A matrix that torch_npu keeps in NZ, as after its owner's cast, for which the stand-ins have no kernel."""
    torch.npu.config.allow_internal_format = True
    return torch_npu.empty_with_format((rows, columns), dtype=torch.bfloat16, device="npu", acl_format=FRACTAL_NZ)


def test_it_runs_on_the_stream_that_is_current(jit: FakeJit) -> None:
    x, stream = torch.randn(4, 2), torch.npu.Stream()
    with torch.npu.stream(stream):
        found = launch_on_npu(tripling(x.npu()))
    assert torch.equal(found.cpu(), 3 * x)
    assert jit.observed == [stream.npu_stream]
    assert stream.npu_stream != torch.npu.current_stream().npu_stream


def test_a_capture_holds_the_launch_and_nothing_else(jit: FakeJit) -> None:
    x = torch.randn(4, 2).npu()
    launch_on_npu(tripling(x))
    graph = torch.npu.NPUGraph()
    with record() as seen, torch.npu.graph(graph):
        found = launch_on_npu(tripling(x))
    assert seen.captured == ["aten.mul.Tensor", "aten.copy_.default"]  # what the made-up kernel is made of
    assert seen.launched == []
    assert seen.copied == []
    for _ in range(2):
        new = torch.randn(4, 2)
        x.copy_(new)
        graph.replay()
        assert torch.equal(found.cpu(), 3 * new)
    assert len(jit.calls) == 2


def test_a_first_launch_in_a_capture_is_refused_and_the_next_capture_works(jit: FakeJit) -> None:
    x = torch.randn(4, 2).npu()
    with pytest.raises(KernelError, match="first launch compiles"), torch.npu.graph(torch.npu.NPUGraph()):
        launch_on_npu(tripling(x))
    assert not jit.calls
    launch_on_npu(tripling(x))
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        found = launch_on_npu(tripling(x))
    graph.replay()
    assert torch.equal(found.cpu(), 3 * x.cpu())


def test_outputs_come_from_torch_npus_allocator_and_nothing_more(jit: FakeJit) -> None:
    jit.compute = lambda x: x
    x = torch.randn(1024, 256).npu()
    with record() as seen:
        launch_on_npu(tripling(x))
    assert x.nbytes <= seen.allocated < x.nbytes + 1024  # blocks are rounded up


def test_a_weight_in_nz_reaches_the_kernel_untouched(jit: FakeJit) -> None:
    x, w = torch.randn(4, 2).npu(), nz_weight(32, 64)
    assert torch_npu.get_npu_format(w) == FRACTAL_NZ
    jit.observe = lambda x, w, y: torch_npu.get_npu_format(w)
    with record() as seen:
        launch_on_npu(tripling(x, w, matrices=frozenset({1})))
    assert jit.calls[0][1] == w.data_ptr()
    assert jit.observed == [FRACTAL_NZ]
    assert not [name for name in seen.launched if "format_cast" in name or "contiguous" in name or "clone" in name]


def test_nz_where_rows_are_read_is_refused(jit: FakeJit) -> None:
    x, w = torch.randn(4, 2).npu(), nz_weight(32, 64)
    with pytest.raises(KernelError, match=r"input 1, \(32, 64\), is in NZ, and the kernel reads it row by row"):
        launch_on_npu(tripling(x, w))
    assert not jit.calls
