"""Launching a kernel on an NPU: on its current stream, into torch's memory, and captured like any other launch.

Written against pypto 0.2.0, its Python sources and what its binary names, and never run on an NPU. PyPTO compiles at
a kernel's first launch, takes its workspace by `torch.empty`, and adds its streams to a capture that is under way.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import torch
from torch import Tensor

from glmfuse.ascend.installed import npu
from glmfuse.errors import KernelError
from glmfuse.lowering.pypto.launch.formats import npu_format, refusal
from glmfuse.lowering.pypto.launch.launch import Launch, Result
from glmfuse.lowering.pypto.process import KernelRef

_MODE: Final = "NPU"
_ON_DEVICE: Final = 0
"""pypto.RunMode.NPU."""

_LOCK = threading.Lock()
"""PyPTO compiles in global state: one thread at a time."""

_LAUNCHED: set[Any] = set()
"""What was launched outside of captures; kept as long as PyPTO's own cache of kernels, for the process."""


def launch_on_npu(launch: Launch) -> Result:
    """Launch on the current stream of the NPU that the inputs are on; KernelError says why it cannot be.

    Nothing is cast and nothing waits: a weight in NZ goes to the kernel as it lies. A first launch is refused in a
    capture, where nothing may be compiled.
    """
    device = launch.inputs[0].device
    with npu().device(device):  # PyPTO takes the current one's stream and workspace, wherever the tensors are
        outputs = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in launch.outputs)
        if not launch.is_empty:
            _launch(launch, tuple(tensor.detach().contiguous() for tensor in launch.inputs), outputs)
        return launch.finish(outputs)


def _launch(launch: Launch, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    formats = tuple(npu_format(tensor) for tensor in inputs)
    if (reason := refusal(launch, formats)) is not None:
        raise KernelError(launch.kernel.builder, _MODE, reason)
    layouts = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
    key = (launch.kernel, inputs[0].device, layouts, formats)
    with _LOCK:
        if key not in _LAUNCHED and npu().is_current_stream_capturing():
            reason = (
                "its first launch compiles it, and would fall into the capture of a graph; "
                "run the model once on inputs of these shapes before it is captured"
            )
            raise KernelError(launch.kernel.builder, _MODE, reason)
        _run(launch.kernel, (*inputs, *outputs))
        _LAUNCHED.add(key)


def _run(kernel: KernelRef, tensors: tuple[Tensor, ...]) -> None:
    from glmfuse.lowering.pypto.build import build  # imports pypto, which no other process should

    jit = build(kernel)
    if jit._runtime_options["run_mode"] != _ON_DEVICE:
        reason = "PyPTO would simulate it, since ASCEND_HOME_PATH was not set; source CANN's set_env.sh"
        raise KernelError(kernel.builder, _MODE, reason)
    try:
        jit(*tensors)
    except RuntimeError as error:
        raise KernelError(kernel.builder, _MODE, str(error)) from error
