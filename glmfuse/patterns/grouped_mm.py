"""Multiplication of groups of rows by a matrix each, as transformers spells it; no pattern by itself."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.capture import isolated


def grouped_mm(rows: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """rows[start:end] @ w[i] for each group.  rows [R, in], w [groups, in, out], ends [groups] int32 -> [R, out].

    Inductor takes aten's operator in bf16 alone, so that a compiled model of another dtype calls
    transformers' own. Source: _grouped_mm of transformers.
    """
    fallback = None if rows.dtype == torch.bfloat16 else _of_transformers()
    return F.grouped_mm(rows, w, offs=ends) if fallback is None else fallback(rows, w, ends)


@cache
def _of_transformers() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """transformers::grouped_mm_fallback, or None where it is not installed and so in no graph."""
    with isolated(), contextlib.suppress(ImportError):
        importlib.import_module("transformers.integrations.moe")
    return getattr(torch.ops.transformers, "grouped_mm_fallback", None)
