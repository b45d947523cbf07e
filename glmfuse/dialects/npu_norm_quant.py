"""torch_npu's norms that quantise what they make, which is never rounded to the model's dtype.

Semantics: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu; roundings as the AscendC of Atlas A2 and A3. Each operator
can quantise twice, by two scales: that is no pattern, nor is a beta.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.wide_norm_quantize import wide_norm_dynamic_quantize, wide_norm_quantize


def npu_add_rms_norm_quant(
    x: Tensor, residual: Tensor, w_norm: Tensor, scale: Tensor, offset: Tensor | None, eps: float, divide: bool
) -> tuple[Tensor, Tensor]:
    """By one scale, to int8, which is the default; it divides unless it is told to multiply."""
    rows, _, total = torch.ops.npu.npu_add_rms_norm_quant(
        x, residual, w_norm, scale, offset, epsilon=eps, div_mode=divide
    )
    return rows, total


def npu_add_rms_norm_dynamic_quant(
    x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """Without a mask of the outputs, the first is made and the second is not, as nothing is smoothed."""
    require(residual is not None, "the operator adds")
    rows, _, total, scale, _ = torch.ops.npu.npu_add_rms_norm_dynamic_quant(x, residual, w_norm, epsilon=eps)
    return rows, scale, total


def npu_add_rms_norm_dynamic_quant_once(
    x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """The same, asked for by a mask, as vllm-ascend does."""
    require(residual is not None, "the operator adds")
    rows, _, total, scale, _ = torch.ops.npu.npu_add_rms_norm_dynamic_quant(
        x, residual, w_norm, epsilon=eps, output_mask=[True, False]
    )
    return rows, scale, total


NPU_NORM_QUANT: tuple[Spelled, ...] = (
    Spelled(wide_norm_quantize, npu_add_rms_norm_quant, ("npu::npu_add_rms_norm_quant",), rounds_alike=True),
    *(
        Spelled(wide_norm_dynamic_quantize, function, ("npu::npu_add_rms_norm_dynamic_quant",), rounds_alike=True)
        for function in (npu_add_rms_norm_dynamic_quant, npu_add_rms_norm_dynamic_quant_once)
    ),
)
