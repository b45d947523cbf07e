"""The mixture of experts of a layer: the shared expert's rows are added where the routed ones are summed."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.npu import chosen
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.grouped_mlp import LAUNCHES, OPS, experts, groupable
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, alike, first, stored
from glmfuse.lowering.aclnn.route_topk import routable
from glmfuse.matching.select import Gain, Request
from glmfuse.patterns.linear import linear
from glmfuse.patterns.swiglu import swiglu

_SHARED = ("w_shared_gate", "w_shared_up", "w_shared_down")


def _moe(
    x: Tensor,
    w_router: Tensor,
    bias: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    w_shared_gate: Tensor,
    w_shared_up: Tensor | None,
    w_shared_down: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> Tensor:
    """Routed and shared experts are summed in fp32 and rounded once; the pattern rounds both summands."""
    rows = x.view(-1, x.shape[-1])
    logits = linear(rows.to(torch.float32), w_router.to(torch.float32), None)
    weights, ids = chosen(logits, bias.to(logits.dtype), top_k, n_group, topk_group, scale)
    shared = _shared(rows, w_shared_gate, w_shared_up, w_shared_down)
    return experts(rows, weights, ids, w_gate_up, w_down, shared).view(x.shape)


def _shared(rows: Tensor, w_gate: Tensor, w_up: Tensor | None, w_down: Tensor) -> Tensor:
    gate = linear(rows, w_gate, None)
    hidden = torch.ops.npu.npu_swiglu(gate, -1) if w_up is None else swiglu(gate, linear(rows, w_up, None))
    result: Tensor = linear(hidden, w_down, None)
    return result


def _limits(request: Request) -> str | None:
    tensors = request.tensors
    x, router = tensors["x"], tensors["w_router"]
    weights = {name: tensors[name] for name in _SHARED if name in tensors}
    return first(
        (
            groupable(x, tensors["w_gate_up"], tensors["w_down"]),
            alike(x=x, **weights),
            stored(tensors["bias"], FLOATS),
            routable(request, router.shape[0]),
        )
    )


def _gain(request: Request) -> Gain:
    """Logits and choice, the routed experts, and the shared expert as it stands."""
    shared = 5 if "w_shared_up" in request.tensors else 3
    return gain_of(request, launches=2 + LAUNCHES + shared)


MOE = AclnnKernel(_moe, ("npu_moe_gating_top_k", *OPS), _limits, _gain)
