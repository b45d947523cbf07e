"""A linear layer of 8-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.quant_linear import as_long
from glmfuse.patterns.quantize import FLOATS, HALVES

FP8 = torch.float8_e4m3fn
_DTYPES = {"x": FP8, "w": FP8, "scale": torch.float32, "per_token": torch.float32, "bias": torch.float32}


@pattern(dims={"x": "T K", "w": "K O", "scale": "O", "per_token": "T", "bias": "O"}, dtypes=_DTYPES, holds=(FP8,))
def fp8_linear(
    x: Tensor, w: Tensor, scale: Tensor, per_token: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(x w) * scale * per_token + bias, rounded once, to dtype.

    x [tokens, in] and w [in, out] float8_e4m3fn, scale [out] or [1] fp32, per_token [tokens] fp32, bias [out] floating
    -> [tokens, out] of dtype, bf16 or fp16. Products of two such numbers are exact in fp32, their sum is one of fp32;
    it is times scale, times per_token, plus bias, each rounded to fp32. w lies as the operator reads it, as
    `quant_linear` has it. Source: npu_quant_matmul of torch_npu with float8 operands, op-plugin 517f2e7.
    """
    y = torch.mm(x.to(torch.float32), w.to(torch.float32)) * scale.to(torch.float32) * per_token.unsqueeze(-1)
    if bias is not None:
        y = y + bias.to(torch.float32)
    return y.to(dtype)


@fp8_linear.constraint
def _(x: Tensor, w: Tensor, dtype: torch.dtype) -> None:
    require(x.dtype == FP8 and w.dtype == FP8, "x and w must be float8_e4m3fn", f"{x.dtype}, {w.dtype}")
    require(x.dim() == 2 and w.dim() == 2, "x and w must be matrices", f"{x.dim()} and {w.dim()} dimensions")
    require(dtype in HALVES, "the result must be bf16 or fp16", dtype)


@fp8_linear.constraint
def _(scale: Tensor, per_token: Tensor, bias: Tensor | None) -> None:
    for name, given in (("scale", scale), ("per_token", per_token)):
        require(given.dtype == torch.float32, f"{name} must be fp32", given.dtype)
        require(given.dim() == 1, f"{name} must be one row", f"{given.dim()} dimensions")
    if bias is not None:
        require(bias.dtype in FLOATS, "bias must be bf16, fp16 or fp32", bias.dtype)
        require(bias.dim() == 1, "bias must be one row", f"{bias.dim()} dimensions")


@fp8_linear.constraint
def _(x: Tensor, w: Tensor, per_token: Tensor, bias: Tensor | None) -> None:
    as_long(x.shape[0], per_token=per_token)
    as_long(w.shape[1], bias=bias)
