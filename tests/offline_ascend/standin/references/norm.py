"""RMSNorm, alone and behind an addition.  x [..., hidden], gamma [hidden]; all sums in fp32.

They differ in how often they round: that is what each docstring says. Source: hicann/ops-nn, `norm/*rms_norm*`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference, only
from tests.offline_ascend.standin.references.rounding import AS_INT8, by_rows, int8

Pair = tuple[Tensor, Tensor]


def reciprocal_deviation(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) over gamma's axes, fp32, kept as axes of size 1."""
    axes = tuple(range(-gamma.dim(), 0))
    return 1 / torch.sqrt(x.float().pow(2).mean(axes, keepdim=True) + epsilon)


def rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Pair:
    """One rounding: RN(x * rstd * gamma), and rstd in fp32."""
    rstd = reciprocal_deviation(input, gamma, epsilon)
    return (input.float() * rstd * gamma.float()).to(input.dtype), rstd


def add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum rounded, the normalised value rounded, then the product (and beta) rounded: y, rstd, the sum."""
    total = (x1.float() + x2.float()).to(x1.dtype)
    rstd = reciprocal_deviation(total, gamma, epsilon)
    y = (total.float() * rstd).to(x1.dtype).float() * gamma.float()
    if beta is not None:
        y = y + beta.float()
    return y.to(x1.dtype), rstd, total


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_rms_norm_bias` without beta. One public kernel variant normalises the sum before it is rounded."""
    return add_rms_norm_bias(x1, x2, gamma, None, epsilon)


def add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y widened to fp32 after its last rounding, y, rstd, the sum."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    return y.float(), y, rstd, total


def add_rms_norm_v2(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Tensor:
    """As `add_rms_norm`, with y in place of x1 and the sum in place of x2; rstd is returned."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    x1.copy_(y)
    x2.copy_(total)
    return rstd


def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None = None,
    scales2: Tensor | None = None,
    zero_points2: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised by given scales: q1, q2 (without scales2 not written; zeros here), the sum.

    bf16 stays in fp32 throughout, unless there is a beta.
    """
    only("npu_add_rms_norm_quant", axis=(axis, -1), dst_type=(dst_type, *AS_INT8))
    exact = x1.float() + x2.float()
    total = exact.to(x1.dtype)
    unrounded = x1.dtype == torch.bfloat16 and beta is None
    values = exact if unrounded else total.float()
    y = values * reciprocal_deviation(values, gamma, epsilon)
    y = (y.half() * gamma).float() if x1.dtype == torch.float16 else y * gamma.float()
    if beta is not None:
        y = y + beta.float()
    first = _quantised(y, scales1, zero_points1, div_mode)
    second = torch.zeros_like(first) if scales2 is None else _quantised(y, scales2, zero_points2, div_mode)
    return first, second, total


def _quantised(y: Tensor, scales: Tensor, zero_points: Tensor | None, divide: bool) -> Tensor:
    values = y / scales.float() if divide else y * scales.float()
    return int8(values if zero_points is None else values + zero_points.float())


def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: list[bool] | None = None,
    y_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Quantised row by row: q1, q2, the sum, scale1, scale2. From the fp32 sum, never rounded between."""
    only("npu_add_rms_norm_dynamic_quant", y_dtype=(y_dtype, *AS_INT8))
    total = x1.float() + x2.float()
    y = total * reciprocal_deviation(total, gamma, epsilon) * gamma.float()
    if beta is not None:
        y = y + beta.float()
    wanted = output_mask or [True, smooth_scale1 is not None and smooth_scale2 is not None]
    first, second = (
        _by_rows(y, smooth) if want else (torch.empty(0, dtype=torch.int8), torch.empty(0))
        for want, smooth in zip(wanted, (smooth_scale1, smooth_scale2), strict=True)
    )
    return first[0], second[0], total.to(x1.dtype), first[1], second[1]


def _by_rows(y: Tensor, smooth: Tensor | None) -> Pair:
    values, scale = by_rows(y if smooth is None else y * smooth.float())
    return int8(values), scale


OPS = {
    "npu_rms_norm": Reference(rms_norm),
    "npu_add_rms_norm": Reference(add_rms_norm),
    "npu_add_rms_norm_cast": Reference(add_rms_norm_cast),
    "npu_add_rms_norm_v2": Reference(add_rms_norm_v2),
    "npu_add_rms_norm_quant": Reference(add_rms_norm_quant),
    "npu_add_rms_norm_dynamic_quant": Reference(add_rms_norm_dynamic_quant),
}
