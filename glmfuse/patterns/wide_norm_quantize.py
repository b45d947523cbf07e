"""Norms that are quantised before they are ever rounded, as fused kernels do it."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.quantize import HALVES, quantize


def _wide_norm(wide: Tensor, w: Tensor, eps: float) -> Tensor:
    """w * x / sqrt(mean(x²) + eps), all in fp32.  wide [..., hidden] fp32 -> alike."""
    deviation = 1 / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * deviation * w.to(torch.float32)


def _in_bf16(x: Tensor) -> None:
    require(x.dtype == torch.bfloat16, "x must be bf16", x.dtype)


def _in_halves(x: Tensor) -> None:
    require(x.dtype in HALVES, "x must be bf16 or fp16", x.dtype)


@pattern(dims={"x": "... H", "residual": "... H", "w_norm": "H", "scale": "H", "offset": "H"}, holds=(torch.int8,))
def wide_norm_quantize(
    x: Tensor, residual: Tensor, w_norm: Tensor, scale: Tensor, offset: Tensor | None, eps: float, divide: bool
) -> tuple[Tensor, Tensor]:
    """quantize(the RMSNorm of x + residual in fp32), and the sum.

    x, residual [..., hidden] bf16, w_norm [hidden]; scale, offset and divide as `quantize` takes them -> [..., hidden]
    int8, and the sum, rounded. Not `norm_quantize`: neither the sum nor the norm is rounded before it is quantised,
    so there is no norm for others to read. In fp16 the kernel rounds otherwise. Source: npu_add_rms_norm_quant of
    torch_npu, op-plugin 517f2e7; its AscendC for Atlas A2 and A3, hicann/ops-nn e5c3fa9.
    """
    _in_bf16(x)
    total = x.to(torch.float32) + residual.to(torch.float32)
    return quantize(_wide_norm(total, w_norm, eps), scale, offset, None, divide), total.to(x.dtype)


@pattern(dims={"x": "... H", "residual": "... H", "w_norm": "H"}, holds=(torch.int8,))
def wide_norm_dynamic_quantize(
    x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor]:
    """dynamic_quantize(the RMSNorm of (x + residual) in fp32), and the sum where there is one.

    x, residual [..., hidden] bf16 or fp16, w_norm [hidden] -> [..., hidden] int8, the scales [...] fp32, and the sum,
    rounded. Not `norm_dynamic_quantize`, by the same as above. Source: npu_add_rms_norm_dynamic_quant of torch_npu,
    op-plugin 517f2e7; npu_rms_norm_dynamic_quant of vllm-ascend 182b75e; their AscendC, hicann/ops-nn e5c3fa9.
    """
    _in_halves(x)
    if residual is None:
        return dynamic_quantize(_wide_norm(x.to(torch.float32), w_norm, eps))
    total = x.to(torch.float32) + residual.to(torch.float32)
    rows, scale = dynamic_quantize(_wide_norm(total, w_norm, eps))
    return rows, scale, total.to(x.dtype)


# Where the functions are traced, no other dtype is searched for; a spelling is another function, and says nothing.
wide_norm_quantize.constraint(_in_bf16)
wide_norm_dynamic_quantize.constraint(_in_halves)
