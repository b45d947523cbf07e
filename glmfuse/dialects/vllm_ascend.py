"""vllm-ascend's own operators: its csrc (`_C_ascend`) and those that it defines in Python (`vllm`).

They are there only inside vllm-ascend. Source: vllm-ascend 182b75e, csrc and vllm_ascend/ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.add_rms_norm import add_rms_norm
from glmfuse.patterns.linear import linear
from glmfuse.patterns.quantize import quantize
from glmfuse.patterns.rotary_embedding import rotary_embedding
from glmfuse.patterns.route_topk import route_topk
from glmfuse.patterns.wide_norm_quantize import wide_norm_dynamic_quantize


def npu_add_rms_norm_bias(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Without its bias, which belongs to quantisation that shifts."""
    y, _, total = torch.ops._C_ascend.npu_add_rms_norm_bias(x, residual, w, None, eps)
    return y, total


def unquantized_gemm(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A linear layer as one operator that no pass looks into."""
    result: Tensor = torch.ops.vllm.unquantized_gemm(x, w, b)
    return result


def npu_rotary_embedding(
    positions: Tensor, q: Tensor, k: Tensor, cos_sin: Tensor, head_dim: int, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """The width that turns is that of the table."""
    turned_q, turned_k = torch.ops.vllm.npu_rotary_embedding(
        positions, q, k, cos_sin, head_dim, cos_sin.shape[-1], not interleaved
    )
    return turned_q, turned_k


def moe_gating_top_k(
    logits: Tensor, bias: Tensor, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The same as torch_npu's, arguments by place; the operator's ids are int32."""
    require(renormalize, "vllm-ascend asks for weights that sum to the scale")
    weights, ids, _ = torch.ops._C_ascend.moe_gating_top_k(
        logits, top_k, topk_group, n_group, 1, 1, 1, False, scale, 1e-20, bias
    )
    return weights, ids.to(torch.int64)


def vllm_quantize(x: Tensor, scale: Tensor, offset: Tensor | None, inverse: Tensor | None, divide: bool) -> Tensor:
    """Times the reciprocal of the activation's scale, which the operator is given beside it."""
    require(offset is not None and inverse is not None, "the operator is given all three")
    require(not divide, "it multiplies")
    result: Tensor = torch.ops.vllm.quantize(x, inverse, scale, offset)
    return result


def npu_rms_norm_dynamic_quant(x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Of one tensor, without smoothing and without a beta."""
    require(residual is None, "the operator does not add")
    rows, scale = torch.ops._C_ascend.npu_rms_norm_dynamic_quant(x, w_norm, None, None, eps)
    return rows, scale


VLLM_ASCEND: tuple[Spelled, ...] = (
    Spelled(add_rms_norm, npu_add_rms_norm_bias, ("_C_ascend::npu_add_rms_norm_bias",), rounds_alike=True),
    Spelled(linear, unquantized_gemm, ("vllm::unquantized_gemm",), rounds_alike=True),
    Spelled(rotary_embedding, npu_rotary_embedding, ("vllm::npu_rotary_embedding",)),
    Spelled(route_topk, moe_gating_top_k, ("_C_ascend::moe_gating_top_k",), rounds_alike=True),
    Spelled(
        wide_norm_dynamic_quantize,
        npu_rms_norm_dynamic_quant,
        ("_C_ascend::npu_rms_norm_dynamic_quant",),
        rounds_alike=True,
    ),
    Spelled(quantize, vllm_quantize, ("vllm::quantize",), rounds_alike=True),
)
