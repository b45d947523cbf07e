"""What surrounds a PyPTO launch on an NPU: memory, formats, captures, errors.

Run on a CPU, with torch_npu's few functions and PyPTO's jit function made up. Against the real torch_npu, over
stand-ins for CANN, the same road is tested in `tests/offline_ascend`; PyPTO's own launch ran nowhere.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch import npu
from glmfuse.lowering.pypto.launch.formats import FRACTAL_NZ
from glmfuse.lowering.pypto.launch.launch import Launch
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import site_of
from tests.support.jit import FakeJit


@dataclass
class Npu:
    """The NPU as this module sees it. formats: of tensors, by address; ND where none is given."""

    jit: FakeJit
    capturing: bool = False
    formats: dict[int, int] = field(default_factory=dict)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Npu:
    made = Npu(FakeJit(lambda x, *_: 3 * x))
    functions = SimpleNamespace(device=nullcontext, is_current_stream_capturing=lambda: made.capturing)
    package = ModuleType("torch_npu")
    package.get_npu_format = lambda tensor: made.formats.get(tensor.data_ptr(), 2)  # type: ignore[attr-defined]
    building = ModuleType("glmfuse.lowering.pypto.build")
    building.build = lambda kernel: made.jit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    monkeypatch.setitem(sys.modules, building.__name__, building)
    monkeypatch.setattr(torch, "npu", functions, raising=False)
    monkeypatch.setattr(npu, "_LAUNCHED", set())
    return made


def tripling(x: Tensor, *others: Tensor, matrices: frozenset[int] = frozenset()) -> Launch:
    kernel = KernelRef.of("tests.support.jit:none")
    outputs = ((tuple(x.shape), x.dtype),)
    return Launch(kernel, (x, *others), outputs, lambda made: made[0].view(-1), matrices)


def test_outputs_are_fresh_and_inputs_contiguous(device: Npu) -> None:
    x = torch.randn(4, 2).t()
    found = npu.launch_on_npu(tripling(x))
    assert torch.equal(found, (3 * x).reshape(-1))
    (call,) = device.jit.calls
    assert x.data_ptr() not in call
    assert found.data_ptr() == call[-1]


def test_what_lies_right_is_passed_as_it_is(device: Npu) -> None:
    x, w = torch.randn(4, 2), torch.randn(16, 16)
    npu.launch_on_npu(tripling(x, w))
    assert device.jit.calls[0][:2] == (x.data_ptr(), w.data_ptr())


def test_nothing_to_compute_is_not_launched(device: Npu) -> None:
    assert npu.launch_on_npu(tripling(torch.randn(0, 4))).shape == (0,)
    assert not device.jit.calls


def test_a_first_launch_in_a_capture_is_refused(device: Npu) -> None:
    x = torch.randn(4, 2)
    device.capturing = True
    with pytest.raises(KernelError, match="first launch compiles.*run the model once on inputs of these shapes"):
        npu.launch_on_npu(tripling(x))
    assert not device.jit.calls
    device.capturing = False
    npu.launch_on_npu(tripling(x))
    device.capturing = True
    assert torch.equal(npu.launch_on_npu(tripling(x + 1)), (3 * (x + 1)).view(-1))


@pytest.mark.parametrize("change", ["shape", "dtype", "format"])
def test_another_kind_of_input_is_another_first_launch(device: Npu, change: str) -> None:
    x, w = torch.randn(4, 2), torch.randn(16, 16, dtype=torch.bfloat16)
    npu.launch_on_npu(tripling(x, w, matrices=frozenset({1})))
    device.capturing = True
    npu.launch_on_npu(tripling(x, w, matrices=frozenset({1})))
    if change == "format":
        device.formats[w.data_ptr()] = FRACTAL_NZ
    other = {"shape": torch.randn(5, 2), "dtype": torch.randn(4, 2).half()}.get(change, x)
    with pytest.raises(KernelError, match="first launch"):
        npu.launch_on_npu(tripling(other, w, matrices=frozenset({1})))


def test_a_failed_launch_is_none(device: Npu) -> None:
    """PyPTO's words are passed on, and the kernel still counts as never launched."""
    working = device.jit
    device.jit = replace(working, compute=lambda x: torch.ones(7).view(3))
    with pytest.raises(KernelError, match=r"tests.support.jit:none fails \(NPU\): shape"):
        npu.launch_on_npu(tripling(torch.randn(4, 2)))
    device.jit, device.capturing = working, True
    with pytest.raises(KernelError, match="first launch"):
        npu.launch_on_npu(tripling(torch.randn(4, 2)))


def test_a_simulation_is_not_taken_for_a_launch(device: Npu) -> None:
    """Without ASCEND_HOME_PATH, PyPTO's cost model would run, and the outputs stay as they were allocated."""
    device.jit = replace(device.jit, run_mode=1)
    with pytest.raises(KernelError, match=r"ASCEND_HOME_PATH was not set; source CANN's set_env.sh"):
        npu.launch_on_npu(tripling(torch.randn(4, 2)))
    assert not device.jit.calls


def test_a_matrix_in_nz_is_passed_as_it_is(device: Npu) -> None:
    x, w = torch.randn(4, 2), torch.randn(32, 48, dtype=torch.bfloat16)
    device.formats[w.data_ptr()] = FRACTAL_NZ
    npu.launch_on_npu(tripling(x, w, matrices=frozenset({1})))
    assert device.jit.calls[0][1] == w.data_ptr()


@pytest.mark.parametrize(
    ("w", "matrices", "reason"),
    [
        (torch.randn(32, 48, dtype=torch.bfloat16), frozenset(), r"input 1, \(32, 48\), is in NZ, and .* row by row"),
        (torch.randn(32, 48), frozenset({1}), "fp32 in ND alone"),
        (torch.randn(8, 48, dtype=torch.bfloat16), frozenset({1}), "no multiples of 16 and 32 bytes"),
        (torch.randn(32, 40, dtype=torch.bfloat16), frozenset({1}), "no multiples of 16 and 32 bytes"),
    ],
    ids=["a vector's", "fp32", "rows", "columns"],
)
def test_what_cannot_be_read_in_nz_is_refused(device: Npu, w: Tensor, matrices: frozenset[int], reason: str) -> None:
    device.formats[w.data_ptr()] = FRACTAL_NZ
    with pytest.raises(KernelError, match=f"{reason}.*keep it in ND, or leave the pattern out"):
        npu.launch_on_npu(tripling(torch.randn(4, 2), w, matrices=matrices))
    assert not device.jit.calls


def test_beside_an_npu_nothing_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model left on the CPU would run thousands of times slower, and nobody asked for it."""
    request = site_of("swiglu", arguments("swiglu", geometry("tiny"), 5, torch.bfloat16))
    kernel = target.kernel_of(KERNELS["swiglu"])
    monkeypatch.setattr(target, "has_npu", lambda: False)
    assert kernel.supports(request) is None
    monkeypatch.setattr(target, "has_npu", lambda: True)
    assert "there is an NPU, and tensors are on the CPU" in str(kernel.supports(request))


def test_without_cann_the_target_is_not_there_even_with_an_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "has_npu", lambda: True)
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    assert "PyPTO simulates even where there is an NPU: ASCEND_HOME_PATH is not set" in str(target.unavailable())
    monkeypatch.setenv("ASCEND_HOME_PATH", "/")
    assert target.unavailable() is None
    assert target.not_by_default() is None


@pytest.mark.parametrize("name", ["linear", "swiglu_mlp", "norm_qkv_rope", "gate_topk"])
def test_the_matrices_of_a_launch_are_the_weights_of_its_pattern(name: str) -> None:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16)
    launch = KERNELS[name].launch(ASCEND_910B, **values)
    weights = {key: value for key, value in values.items() if key.startswith("w") and getattr(value, "ndim", 0) == 2}
    found = [launch.inputs[place] for place in sorted(launch.matrices)]
    assert len(weights) >= 1
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in weights.values()]
