"""Casts: on an npu `x.to(dtype)` is an operator of torch_npu's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference


def dtype_cast(input: Tensor, dtype: torch.dtype, *_: Any, **__: Any) -> Tensor:
    """x in another dtype, a fresh tensor of the same layout."""
    return torch.ops.aten._to_copy(input, dtype=dtype)


OPS = {"_npu_dtype_cast": Reference(dtype_cast), "npu_dtype_cast": Reference(dtype_cast)}
