"""torch_npu's operators on 8-bit floats, which Ascend950 has and Atlas A2 and A3 have not.

The same operators as for int8, told by `dst_type` or by what they are given. Semantics: op-plugin 517f2e7,
docs/zh/custom_APIs/torch_npu; the kernels themselves have not been read, so that they round alike is not claimed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.dialects.spelled import Spelled
from glmfuse.patterns.fp8_linear import fp8_linear
from glmfuse.patterns.fp8_quantize import fp8_quantize


def npu_dynamic_quant_to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """To float8_e4m3fn, row by row, with nothing smoothed."""
    rows, scale = torch.ops.npu.npu_dynamic_quant(x, dst_type=torch.float8_e4m3fn)
    return rows, scale


def npu_quant_matmul_of_fp8(
    x: Tensor, w: Tensor, scale: Tensor, per_token: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Both operands as they are stored; no dtype of x1 or x2 says that they are something else."""
    result: Tensor = torch.ops.npu.npu_quant_matmul(
        x, w, scale, pertoken_scale=per_token, bias=bias, output_dtype=dtype
    )
    return result


NPU_FP8: tuple[Spelled, ...] = (
    Spelled(fp8_quantize, npu_dynamic_quant_to_fp8, ("npu::npu_dynamic_quant",)),
    Spelled(fp8_linear, npu_quant_matmul_of_fp8, ("npu::npu_quant_matmul",)),
)
