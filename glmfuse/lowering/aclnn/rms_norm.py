"""RMSNorm, alone and after the residual sum.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_rms_norm.md and -npu_add_rms_norm.md.
Roundings: the AscendC sources of ops-nn (rms_norm, add_rms_norm), read and never run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, alike, first, ranks, stored
from glmfuse.matching.select import Request


def _rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Rounded once, after the weight; the pattern rounds before it too."""
    y: Tensor = torch.ops.npu.npu_rms_norm(x, w, eps)[0]
    return y


def _add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, the normalised value and the product are rounded, as in the pattern.

    One tiling of the kernel is said to normalise the sum before it is rounded; `verify` tells.
    """
    y, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, w, eps)
    return y, total


def _limits(request: Request) -> str | None:
    tensors = request.tensors
    return first((ranks("x", tensors["x"], 2, 8), stored(tensors["x"], FLOATS), alike(**tensors)))


RMS_NORM = AclnnKernel(_rms_norm, ("npu_rms_norm",), _limits, gain_of)
ADD_RMS_NORM = AclnnKernel(_add_rms_norm, ("npu_add_rms_norm",), _limits, gain_of, rounds_alike=True)
