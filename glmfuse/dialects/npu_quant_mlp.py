"""The feed-forward layer of int8 rows with an operator that undoes, activates and quantises.

As vllm-ascend 182b75e has the shared expert: the first product is left as int32, and nothing is rounded until it is
int8 again. Who made the rows is no part of it: the layer alone, or a norm for others as well. Semantics: op-plugin
517f2e7, docs/zh/custom_APIs/torch_npu; vllm-ascend's own operator by its AscendC, csrc/moe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.matching.pattern import require
from glmfuse.patterns.quant_mlp import QUANT_MLP

_QUANTISED_BY_ROWS = 1
_GATED = 1
"""vllm-ascend's second way to activate: halves all the same, clamped where the limit is above 0."""

Activate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The product in int32 [tokens, 2 * width], its scales [2 * width] and [tokens] -> int8 [tokens, width], and scales."""


def _mlp(name: str, activate: Activate) -> Callable[..., Tensor]:
    """The layer with this activation, as the spelling of this name."""

    def mlp(
        x: Tensor,
        rows: Tensor,
        per_token: Tensor,
        w_gate: Tensor,
        s_gate: Tensor,
        w_up: Tensor | None,
        s_up: Tensor | None,
        w_down: Tensor,
        s_down: Tensor,
    ) -> Tensor:
        require(w_up is None, "one product of gate and up")
        total = torch.ops.npu.npu_quant_matmul(rows, w_gate, s_gate, output_dtype=torch.int32)
        hidden, inner = activate(total, s_gate, per_token)
        y = torch.ops.npu.npu_quant_matmul(hidden, w_down, s_down, pertoken_scale=inner, output_dtype=x.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    mlp.__name__ = name
    return mlp


def _of_torch_npu(total: Tensor, s: Tensor, per_token: Tensor) -> tuple[Tensor, Tensor]:
    """torch_npu's operator, which activates the right half unless it is told."""
    hidden, inner = torch.ops.npu.npu_dequant_swiglu_quant(
        total, weight_scale=s, activation_scale=per_token, activate_left=True, quant_mode=_QUANTISED_BY_ROWS
    )
    return hidden, inner


def _of_vllm_ascend(total: Tensor, s: Tensor, per_token: Tensor) -> tuple[Tensor, Tensor]:
    """vllm-ascend's operator, with no limit, a factor of 1 before the exponent, and nothing added."""
    hidden, inner = torch.ops._C_ascend.npu_dequant_swiglu_quant(
        total,
        weight_scale=s,
        activation_scale=per_token,
        activate_left=True,
        quant_mode=_QUANTISED_BY_ROWS,
        swiglu_mode=_GATED,
        clamp_limit=0.0,
        glu_alpha=1.0,
        glu_bias=0.0,
    )
    return hidden, inner


NPU_QUANT_MLP: tuple[Spelled, ...] = (
    Spelled(
        QUANT_MLP["w8a8_dynamic"],
        _mlp("npu_mlp_by_dequant_swiglu_quant", _of_torch_npu),
        ("npu::npu_dequant_swiglu_quant", "npu::npu_quant_matmul"),
        requantises=True,
    ),
    Spelled(
        QUANT_MLP["w8a8_dynamic"],
        _mlp("npu_mlp_by_dequant_swiglu_quant_of_vllm_ascend", _of_vllm_ascend),
        ("_C_ascend::npu_dequant_swiglu_quant", "npu::npu_quant_matmul"),
        requantises=True,
    ),
)
