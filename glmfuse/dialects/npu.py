"""torch_npu's fused operators, as models that were patched by hand call them.

Semantics: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu; roundings as the AscendC of Atlas A2 and A3.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.add_rms_norm import add_rms_norm
from glmfuse.patterns.linear import linear
from glmfuse.patterns.rms_norm import rms_norm
from glmfuse.patterns.rotary import rotary
from glmfuse.patterns.rotary_embedding import rotary_embedding
from glmfuse.patterns.route_topk import route_topk
from glmfuse.patterns.swiglu import swiglu

_SIGMOID: Final = 1
_SUM_OF_TWO: Final = 1


def npu_rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Rounded once, after the weight; the pattern rounds before it too."""
    result: Tensor = torch.ops.npu.npu_rms_norm(x, w, eps)[0]
    return result


def npu_add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, the normalised value and the product are rounded, as in the pattern; the sum is the third result.

    One tiling of the kernel is said to normalise the sum before it is rounded; `verify` tells.
    """
    y, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, w, eps)
    return y, total


def npu_swiglu(gate: Tensor, up: Tensor | None) -> Tensor:
    """Of halves of one tensor, or of two that are joined first; rounded once, the pattern rounds silu(gate) too."""
    both = gate if up is None else torch.cat([gate, up], dim=-1)
    result: Tensor = torch.ops.npu.npu_swiglu(both, -1)
    return result


def npu_rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The part of a head that turns, and the rest joined to it."""
    turned = cos.shape[-1]
    mode = "interleave" if interleaved else "half"
    head = torch.ops.npu.npu_rotary_mul(x[..., :turned], cos, sin, mode)
    return torch.cat([head, x[..., turned:]], dim=-1) if turned < x.shape[-1] else head


def npu_mrope(
    positions: Tensor, q: Tensor, k: Tensor, cos_sin: Tensor, head_dim: int, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Text: one position for each token, and no sections."""
    mode = "interleave" if interleaved else "half"
    turned_q, turned_k = torch.ops.npu.npu_mrope(positions, q, k, cos_sin, head_dim, rotary_mode=mode)
    return turned_q, turned_k


def chosen(
    logits: Tensor, bias: Tensor, top_k: int, n_group: int, topk_group: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights, as the logits are stored, and int32 ids of each token's experts; the weights' sum is the scale.

    logits [tokens, experts], bias [experts] of the same dtype -> [tokens, top_k] both. Sigmoid scores, groups by the
    sum of their two best.
    """
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits,
        top_k,
        bias=bias,
        k_group=topk_group,
        group_count=n_group,
        group_select_mode=_SUM_OF_TWO,
        renorm=0,
        norm_type=_SIGMOID,
        routed_scaling_factor=scale,
        eps=1e-20,
    )
    return weights, ids


def npu_moe_gating_top_k(
    logits: Tensor, bias: Tensor, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """In int64, as torch has ids."""
    require(renormalize, "the operator always divides sigmoid scores by their sum")
    weights, ids = chosen(logits, bias, top_k, n_group, topk_group, scale)
    return weights, ids.to(torch.int64)


def npu_linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """As it is called, on rows."""
    result: Tensor = torch.ops.npu.npu_linear(x, w, b)
    return result


NPU: tuple[Spelled, ...] = (
    Spelled(rms_norm, npu_rms_norm, ("npu::npu_rms_norm",)),
    Spelled(add_rms_norm, npu_add_rms_norm, ("npu::npu_add_rms_norm",), rounds_alike=True),
    Spelled(swiglu, npu_swiglu, ("npu::npu_swiglu",)),
    Spelled(rotary, npu_rotary_mul, ("npu::npu_rotary_mul",)),
    Spelled(rotary_embedding, npu_mrope, ("npu::npu_mrope",)),
    Spelled(route_topk, npu_moe_gating_top_k, ("npu::npu_moe_gating_top_k",), rounds_alike=True),
    Spelled(linear, npu_linear, ("npu::npu_linear",), rounds_alike=True),
)
