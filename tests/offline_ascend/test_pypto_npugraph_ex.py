"""Fused ops with PyPTO kernels through the real npugraph_ex: rehearsed, captured, replayed, captured again.

torch_npu over stand-ins for CANN, and PyPTO's jit function made up: what runs is the road to the launch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import npugraph_ex
import pytest
import torch
from torch import Tensor, fx

from glmfuse import Report, Target
from glmfuse.capture import capture_model
from glmfuse.lowering.pypto.launch import npu
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.target import kernel_of
from glmfuse.lowering.rehearse import rehearsed
from tests.offline_ascend.standin.log import record
from tests.support.graphs import run_stages
from tests.support.jit import FakeJit

OPTIONS = {"pattern_fusion_pass": False}


def activated(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate.float()).to(gate.dtype) * up


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJit]:
    """SwiGLU, and whether its launch fell into a capture."""
    made = FakeJit(activated, lambda *_: torch.npu.is_current_stream_capturing())
    building = ModuleType("glmfuse.lowering.pypto.build")
    building.build = lambda kernel: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, building.__name__, building)
    monkeypatch.setattr(npu, "_LAUNCHED", set())
    return made


def layers(gate: Tensor, up: Tensor) -> Tensor:
    """Two sites of one kind."""
    first = torch.nn.functional.silu(gate) * up
    return torch.nn.functional.silu(first) * up


def compiled(function: Callable[..., Any], report: Report, *, rehearse: bool) -> Any:
    target = Target("launched", {"swiglu": kernel_of(KERNELS["swiglu"])})

    def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        run_stages(gm, targets=(target,), report=report)
        call = npugraph_ex.compile_fx(gm, list(example_inputs), dict(OPTIONS))

        def boxed(args: list[Any]) -> Any:
            return call(*args)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return rehearsed(gm, boxed) if rehearse else boxed

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return capture_model(gm, example_inputs, compiler, compiler)

    return torch.compile(function, backend=backend, fullgraph=True)


def drawn(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 64, dtype=torch.bfloat16), torch.randn(rows, 64, dtype=torch.bfloat16)


def marked(tensor: Tensor) -> Tensor:
    """With rows of any number."""
    torch._dynamo.mark_dynamic(tensor, 0)
    return tensor


@pytest.mark.parametrize(
    ("dynamic", "calls"),
    [(False, [(4, True), (4, False)]), (True, [(4, True), (4, False), (7, True), (4, False), (7, False)])],
    ids=["static", "dynamic"],
)
def test_rehearsed_captured_replayed_and_captured_again(
    jit: FakeJit, dynamic: bool, calls: Sequence[tuple[int, bool]]
) -> None:
    report = Report()
    run = compiled(layers, report, rehearse=True)
    for rows, is_new in calls:
        gate, up = drawn(rows)
        jit.observed.clear()
        with record() as seen:
            found = run(*(marked(tensor.npu()) if dynamic else tensor.npu() for tensor in (gate, up)))
        assert torch.equal(found.cpu(), activated(activated(gate, up), up))
        assert jit.observed == ([False, True, True] if is_new else [])
        assert seen.captures == is_new
        assert seen.replays == 1
    (graph,) = report.graphs
    assert graph.count("chosen")["swiglu"] == 2


def test_without_a_rehearsal_the_first_launch_falls_into_the_capture(jit: FakeJit) -> None:
    """npugraph_ex runs nothing before it captures: this is why there are rehearsals."""
    gate, up = drawn(4)
    with pytest.raises(Exception, match="first launch compiles"):
        compiled(layers, Report(), rehearse=False)(gate.npu(), up.npu())
