"""Multiplication of groups of rows by a matrix each, as transformers spells it; no pattern by itself."""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.capture import isolated


def grouped_mm(rows: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """rows[start:end] @ w[i] for each group.  rows [R, in], w [groups, in, out], ends [groups] int32 -> [R, out].

    Inductor takes aten's operator in bf16 alone, so that a compiled model of another dtype calls
    transformers' own. Source: _grouped_mm of transformers.
    """
    if rows.dtype != torch.bfloat16 and _is_transformers_here():
        result: Tensor = torch.ops.transformers.grouped_mm_fallback(rows, w, ends)
        return result
    return F.grouped_mm(rows, w, offs=ends)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_transformers_here() -> bool:
    """Whether any graph may have transformers' operator; loads it, which bf16 does not need."""
    try:
        with isolated():
            importlib.import_module("transformers.integrations.moe")
    except ImportError:
        return False
    return hasattr(torch.ops.transformers, "grouped_mm_fallback")
