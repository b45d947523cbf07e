"""A kernel of the target: a function in torch_npu's operators, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glmfuse.lowering.aclnn.device import missing
from glmfuse.lowering.target import Kernel
from glmfuse.matching.select import Gain, Request


@dataclass(frozen=True, slots=True)
class AclnnKernel:
    """A pattern in torch_npu's operators.

    fn: a function of the pattern's arguments. ops: what it calls of `torch.ops.npu`. limits: why the operators do not
    take a site, or None. gain: what fusing it saves. rounds_alike: whether the result is rounded where the
    pattern's is, so that only sums in another order set the two apart. overwrites: as of any kernel.
    """

    fn: Callable[..., Any]
    ops: tuple[str, ...]
    limits: Callable[[Request], str | None]
    gain: Callable[[Request], Gain]
    rounds_alike: bool = False
    overwrites: bool = False


def kernel_of(kernel: AclnnKernel) -> Kernel:
    """The kernel as any target may hold it."""

    def supports(request: Request) -> str | None:
        devices = {layout.device.type for layout in request.tensors.values()}
        if devices != {"npu"}:
            return f"torch_npu's operators run on an NPU, not on {' and '.join(sorted(devices - {'npu'}))}"
        return missing(kernel.ops) or kernel.limits(request)

    return Kernel(kernel.fn, supports, kernel.gain, overwrites=kernel.overwrites)
