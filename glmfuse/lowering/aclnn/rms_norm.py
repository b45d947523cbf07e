"""RMSNorm, alone and after the residual sum.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_rms_norm.md and -npu_add_rms_norm.md.
Roundings: the AscendC sources of ops-nn (rms_norm, add_rms_norm), read and never run.
"""

from __future__ import annotations

from glmfuse.dialects.npu import npu_add_rms_norm, npu_rms_norm
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, alike, first, ranks, stored
from glmfuse.matching.select import Request


def _limits(request: Request) -> str | None:
    tensors = request.tensors
    return first((ranks("x", tensors["x"], 2, 8), stored(tensors["x"], FLOATS), alike(**tensors)))


RMS_NORM = AclnnKernel(npu_rms_norm, ("npu_rms_norm",), _limits, gain_of)
ADD_RMS_NORM = AclnnKernel(npu_add_rms_norm, ("npu_add_rms_norm",), _limits, gain_of, rounds_alike=True)
