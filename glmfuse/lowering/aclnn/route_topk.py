"""The choice of experts by one operator.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_moe_gating_top_k.md. Those of 7.0.0 were
narrower: 256 experts in 8 groups; what an older CANN does not take, its operator refuses when it is called.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.dialects.npu import chosen
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, at_most, first, stored
from glmfuse.matching.select import Request

_EXPERTS: Final = 2048
_BLOCK: Final = 32


def _route_topk(
    logits: Tensor, bias: Tensor, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """In fp32 throughout, as the pattern."""
    weights, ids = chosen(logits, bias.to(logits.dtype), top_k, n_group, topk_group, scale)
    return weights, ids.to(torch.int64)


def routable(request: Request, experts: object) -> str | None:
    """Whether the operator takes so many experts and this choice among them."""
    scalars = request.scalars
    top_k, n_group, topk_group = scalars["top_k"], scalars["n_group"], scalars["topk_group"]
    if not isinstance(experts, int):
        return f"the number of experts varies ({experts})"
    each = experts // n_group
    padded = -(-each // _BLOCK) * _BLOCK * n_group
    return first(
        (
            None if scalars["renormalize"] else "the operator always divides sigmoid scores by their sum",
            at_most("experts", experts, _EXPERTS),
            at_most("groups padded to 32 experts,", padded, _EXPERTS),
            None if each > 2 else f"groups of {each} experts; the operator takes more than 2",
            at_most("top_k", top_k, each * topk_group),
        )
    )


def _limits(request: Request) -> str | None:
    logits, bias = request.tensors["logits"], request.tensors["bias"]
    return first((stored(logits, FLOATS), stored(bias, FLOATS), routable(request, logits.shape[-1])))


ROUTE_TOPK = AclnnKernel(_route_topk, ("npu_moe_gating_top_k",), _limits, gain_of, rounds_alike=True)
