"""The gated activation, where gate and up are halves of one tensor.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_swiglu.md.
"""

from __future__ import annotations

from glmfuse.dialects.npu import npu_swiglu
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, contiguous, first, ranks, stored
from glmfuse.lowering.aten.gain import size
from glmfuse.matching.select import Gain, Request


def _limits(request: Request) -> str | None:
    tensors = request.tensors
    checks = (check for name, at in tensors.items() for check in (ranks(name, at, 1, 8), contiguous(name, at)))
    return first((stored(tensors["gate"], FLOATS), *checks))


def _gain(request: Request) -> Gain:
    """Halves of one tensor are read once and the result written, instead of silu's written and read besides.

    Two tensors would have to be joined first, which moves more than the fused operator saves.
    """
    result = size(request.outputs[0])
    if "up" in request.tensors:
        return gain_of(request, launches=2, moved=7 * result, moved_apart=5 * result)
    return gain_of(request, moved=3 * result, moved_apart=5 * result)


SWIGLU = AclnnKernel(npu_swiglu, ("npu_swiglu",), _limits, _gain)
