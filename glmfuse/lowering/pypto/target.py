"""The target `pypto`: on an NPU its kernels launch there; on a CPU, when asked for by name, in the interpreter."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from glmfuse.ascend import cann
from glmfuse.ascend.installed import has_npu
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.gain import gain
from glmfuse.lowering.pypto.launch.launch import PyptoKernel, interpret
from glmfuse.lowering.pypto.launch.npu import launch_on_npu
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.select import Request

_TOOLS = (("cmake", "cmake"), ("c++", "g++"))


def unavailable() -> str | None:
    """Why PyPTO cannot be used here, with what to install, or None."""
    if sys.version_info >= (3, 13):
        return "PyPTO 0.2.0 has no wheel for Python 3.13 and later; use Python 3.11 or 3.12"
    if importlib.util.find_spec("pypto") is None:
        return "PyPTO is not installed; install it with: pip install 'glmfuse[pypto]'"
    if has_npu():
        reason = cann.unavailable()
        return reason and f"without CANN, PyPTO simulates even where there is an NPU: {reason}"
    missing = [package for tool, package in _TOOLS if shutil.which(tool) is None]
    return f"its interpreter needs {' and '.join(missing)}; install them" if missing else None


def not_by_default() -> str | None:
    """On a CPU the interpreter is for checking kernels, thousands of times slower than the engine."""
    return None if has_npu() else "there is no NPU; name it in targets= to run its kernels in PyPTO's interpreter"


def kernel_of(kernel: PyptoKernel) -> Kernel:
    """A PyPTO kernel as any target may hold it: launched on an NPU, interpreted elsewhere."""
    return Kernel(_run(kernel), _supports(kernel), partial(gain, spared=kernel.spared), compiles=True)


def _run(kernel: PyptoKernel) -> Callable[..., Any]:
    def run(**arguments: Any) -> Any:
        launch = kernel.launch(ASCEND_910B, **arguments)
        return launch_on_npu(launch) if launch.inputs[0].device.type == "npu" else interpret(launch)

    return run


def _supports(kernel: PyptoKernel) -> Callable[[Request], str | None]:
    def supports(request: Request) -> str | None:
        if any(layout.device.type not in ("cpu", "npu") for layout in request.tensors.values()):
            return "PyPTO runs on Ascend NPUs, and in its interpreter on a CPU"
        return kernel.limits(ASCEND_910B, request)

    return supports


PYPTO = Target(
    "pypto",
    {name: kernel_of(kernel) for name, kernel in KERNELS.items()},
    unavailable=unavailable,
    not_by_default=not_by_default,
)
