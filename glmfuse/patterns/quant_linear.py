"""A linear layer of int8 rows and weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quantize import HALVES

_DTYPES = {
    "x": torch.int8,
    "w": torch.int8,
    "scale": torch.float32,
    "per_token": torch.float32,
    "quant_bias": torch.int32,
    "bias": torch.float32,
}


@pattern(
    dims={"x": "T K", "w": "K O", "scale": "O", "per_token": "T", "quant_bias": "O", "bias": "O"},
    dtypes=_DTYPES,
    holds=(torch.int8,),
)
def quant_linear(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    per_token: Tensor | None,
    quant_bias: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(x w + quant_bias) * scale * per_token + bias, rounded once, to dtype.

    x [tokens, in] int8, w [in, out] int8, scale [out] or [1], per_token [tokens] fp32, quant_bias [out] int32, bias
    [out] floating -> [tokens, out] of dtype, bf16 or fp16. The sum of products and quant_bias is int32; it is
    rounded to fp32, times scale, times per_token, plus bias, each of these rounded to fp32.

    w lies as the operator reads it: one that is held [out, in] is there as its transpose, a node of the graph, while
    the other way round no node might hold it. The product is one of int32, so it is exact for up to 131071 inputs
    (2^31 / 2^14) on every machine. torch._int_mm would be faster, but on a CPU without VNNI oneDNN sums pairs in 16
    bits that saturate: with ONEDNN_MAX_CPU_ISA=AVX2, 127 * 127 + 127 * 127 is 255 there. Source:
    npu_quant_matmul of torch_npu, op-plugin 517f2e7.
    """
    total = torch.mm(x.to(torch.int32), w.to(torch.int32))
    if quant_bias is not None:
        total = total + quant_bias
    y = total.to(torch.float32) * scale.to(torch.float32)
    if per_token is not None:
        y = y * per_token.unsqueeze(-1)
    if bias is not None:
        y = y + bias.to(torch.float32)
    return y.to(dtype)


@quant_linear.constraint
def _(x: Tensor, w: Tensor, dtype: torch.dtype) -> None:
    require(x.dtype == torch.int8 and w.dtype == torch.int8, "x and w must be int8", f"{x.dtype}, {w.dtype}")
    require(x.dim() == 2 and w.dim() == 2, "x and w must be matrices", f"{x.dim()} and {w.dim()} dimensions")
    require(dtype in HALVES, "the result must be bf16 or fp16", dtype)


@quant_linear.constraint
def _(scale: Tensor, per_token: Tensor | None, quant_bias: Tensor | None, bias: Tensor | None) -> None:
    floats = (torch.float32, torch.bfloat16, torch.float16)
    takes = ((scale, floats[:2]), (per_token, floats[:1]), (quant_bias, (torch.int32,)), (bias, floats))
    for (given, dtypes), name in zip(takes, ("scale", "per_token", "quant_bias", "bias"), strict=True):
        if given is not None:
            require(given.dtype in dtypes, f"{name} must be {' or '.join(map(str, dtypes))}", given.dtype)
            require(given.dim() == 1, f"{name} must be one row", f"{given.dim()} dimensions")


@quant_linear.constraint
def _(x: Tensor, w: Tensor, per_token: Tensor | None, quant_bias: Tensor | None, bias: Tensor | None) -> None:
    as_long(x.shape[0], per_token=per_token)
    as_long(w.shape[1], quant_bias=quant_bias, bias=bias)


def as_long(size: int, **given: Tensor | None) -> None:
    """Require rows of this many numbers: torch would spread a single one, and a kernel read past it."""
    for name, row in given.items():
        if row is not None:
            fits = statically_known_true(row.shape[0] == size)
            require(fits, f"{name} must have {size} numbers", row.shape[0])
