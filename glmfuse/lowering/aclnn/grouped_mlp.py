"""The routed experts: sorted by expert, multiplied in groups, and summed for each token.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu of npu_moe_init_routing_v2, npu_grouped_matmul (one tensor
each of x, weight and y) and npu_moe_finalize_routing; ops-transformer, aclnnMoeFinalizeRoutingV2, for fp32 weights
beside bf16 rows.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, alike, at_most, contiguous, first, stored
from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Gain, Request

OPS: Final = ("npu_moe_init_routing_v2", "npu_grouped_matmul", "npu_swiglu", "npu_moe_finalize_routing")

LAUNCHES: Final = 5

_GROUPS: Final = 1024
_INNER: Final = 65535
_COUNTS: Final = 1
_ONE_OUTPUT: Final = 2
_GROUPED_ROWS: Final = 0
_BY_TOKEN: Final = 2
"""`drop_pad_mode` of finalize: nothing is dropped, and places are listed token by token, as init_routing_v2 does."""


def experts(
    rows: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor, beside: Tensor | None = None
) -> Tensor:
    """The weighted sum of each token's experts, and `beside`, rounded once.

    rows [tokens, hidden], weights [tokens, active] fp32, ids [tokens, active] int32, w_gate_up [experts, 2 * width,
    hidden], w_down [experts, hidden, width], beside [tokens, hidden] -> [tokens, hidden].
    """
    count = w_gate_up.shape[0]
    sorted_rows, places, counts, _ = torch.ops.npu.npu_moe_init_routing_v2(
        rows,
        ids,
        expert_num=count,
        drop_pad_mode=0,
        expert_tokens_num_type=_COUNTS,
        expert_tokens_num_flag=True,
        active_expert_range=[0, count],
    )
    hidden = torch.ops.npu.npu_swiglu(_grouped(sorted_rows, w_gate_up, counts), -1)
    outputs = _grouped(hidden, w_down, counts)
    shares = weights if rows.dtype != torch.float16 else weights.to(rows.dtype)  # fp32 is taken beside bf16 alone
    result: Tensor = torch.ops.npu.npu_moe_finalize_routing(
        outputs, beside, None, None, shares, places, None, drop_pad_mode=_BY_TOKEN
    )
    return result


def _grouped(rows: Tensor, w: Tensor, counts: Tensor) -> Tensor:
    """Each group of rows times its own weight, w [groups, out, in]; the operator reads it transposed."""
    result: Tensor = torch.ops.npu.npu_grouped_matmul(
        [rows],
        [w.transpose(-2, -1)],
        group_list=counts,
        split_item=_ONE_OUTPUT,
        group_type=_GROUPED_ROWS,
        group_list_type=_COUNTS,
    )[0]
    return result


def _grouped_mlp(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Rounded after each product, after swiglu and after the fp32 sum; the pattern rounds silu too.

    Beside fp16 rows the weights are rounded as well.
    """
    rows = x.view(-1, x.shape[-1])
    return experts(rows, weights, ids.to(torch.int32), w_gate_up, w_down).view(x.shape)


def groupable(x: Layout, w_gate_up: Layout, w_down: Layout) -> str | None:
    """Whether the operators take these rows and weights of the experts."""
    count, both, hidden = w_gate_up.shape
    few = isinstance(count, int) and count < 2
    return first(
        (
            stored(x, FLOATS),
            alike(x=x, w_gate_up=w_gate_up, w_down=w_down),
            "one expert alone; the operator takes two and more" if few else None,
            at_most("experts", count, _GROUPS),
            at_most("hidden", hidden, _INNER),
            at_most("the width of gate and up", both, _INNER),
            contiguous("x", x),
            contiguous("w_gate_up", w_gate_up),
            contiguous("w_down", w_down),
        )
    )


def _limits(request: Request) -> str | None:
    return groupable(*(request.tensors[name] for name in ("x", "w_gate_up", "w_down")))


def _gain(request: Request) -> Gain:
    """Routing, product, swiglu, product, sum."""
    return gain_of(request, launches=LAUNCHES)


GROUPED_MLP = AclnnKernel(_grouped_mlp, OPS, _limits, _gain)
