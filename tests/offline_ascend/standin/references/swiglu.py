"""SwiGLU: a / (1 + exp(-a)) * b in fp32, rounded once, alone or between two quantisations."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference, only
from tests.offline_ascend.standin.references.rounding import AS_INT8, int8

ONE_127TH = torch.tensor(1.0 / 127.0)


def gated(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b, both fp32."""
    return a / (1 + torch.exp(-a)) * b


def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """The left half is activated.  [..., 2 n] -> [..., n]."""
    left, right = input.float().chunk(2, dim)
    return gated(left, right).to(input.dtype)


def dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """int8 [rows, n] and fp32 scales [rows], from int32 or floating [rows, 2 n].

    group_index counts the rows of each group, and picks the row of the scales; rows behind the last group are not
    written by the kernel (zeros here). With quant_mode 1 the scale is max * (1/127) and q = y / scale: a division,
    which dynamic_quant has not.
    """
    name = "npu_dequant_swiglu_quant"
    only(name, dst_type=(dst_type, *AS_INT8), round_mode=(round_mode, None, 0), swiglu_mode=(swiglu_mode, 0, 1))
    only(name, activate_dim=(activate_dim, None, -1, x.dim() - 1))
    groups = None if group_index is None else torch.repeat_interleave(group_index.long())
    rows = x.shape[0] if groups is None else len(groups)
    values = _dequantised(x[:rows], _of(weight_scale, groups), activation_scale, _of(bias, groups))
    if swiglu_mode:
        y = _clamped(values, clamp_limit, glu_alpha, glu_bias)
    else:
        left, right = values.chunk(2, -1)
        y = gated(left, right) if activate_left else gated(right, left)
    out, scale = torch.zeros(x.shape[0], y.shape[-1], dtype=torch.int8), torch.zeros(x.shape[0])
    smooth = _of(quant_scale, groups)
    if quant_mode == 1:
        out[:rows], scale[:rows] = _dynamic(y if smooth is None else y * smooth.float())
    else:
        assert smooth is not None, "static quantisation needs quant_scale"
        out[:rows] = _static(y, smooth, quant_offset)
    return out, scale


def _of(values: Tensor | None, groups: Tensor | None) -> Tensor | None:
    return values if values is None or groups is None else values[groups]


def _dequantised(x: Tensor, weight: Tensor | None, activation: Tensor | None, bias: Tensor | None) -> Tensor:
    if x.dtype != torch.int32:
        return x.float()
    assert weight is not None, "an int32 input needs weight_scale"
    whole = bias is not None and bias.dtype == torch.int32
    values = (x + bias if whole else x).float() * weight.float()
    if activation is not None:
        values = values * activation.reshape(-1, 1)[: x.shape[0]].float()
    return values if bias is None or whole else values + bias.float()


def _clamped(values: Tensor, limit: float, alpha: float, bias: float) -> Tensor:
    """The variant with neighbours as gate and up, both clamped: swiglu_mode 1."""
    gate = values[..., ::2].clamp(max=limit)
    up = values[..., 1::2].clamp(-limit, limit) + bias
    return gate / (1 + torch.exp(-alpha * gate)) * up


def _dynamic(y: Tensor) -> tuple[Tensor, Tensor]:
    scale = y.abs().amax(-1) * ONE_127TH
    return int8(y / scale.unsqueeze(-1)), scale


def _static(y: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    values = y / scale.float() if scale.numel() > 1 else y * (1 / scale.float())
    return int8(values if offset is None else values + offset.float())


OPS = {"npu_swiglu": Reference(swiglu), "npu_dequant_swiglu_quant": Reference(dequant_swiglu_quant)}
