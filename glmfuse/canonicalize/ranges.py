"""Rewrites that hold because of the numbers that a tensor of indices can have."""

from __future__ import annotations

from typing import Any

import torch

from glmfuse.canonicalize.term import GETITEM, Term, shape_of, size_of

aten = torch.ops.aten

_SELECTING = frozenset(
    {
        aten.reshape.default,
        aten.permute.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.index.Tensor,
        aten.gather.default,
    }
)
"""Operators whose result has no number that their first argument does not have."""


def count_of(term: Term) -> int | None:
    """n, where a term is known to hold indices from 0 to n - 1; None where that is not known."""
    if term.op in _SELECTING:
        return count_of(term.args[0])
    if term.op is not GETITEM:
        return None
    source, place = term.args
    if source.op is aten.sort.default and place == 0:
        return count_of(source.args[0])
    if source.op is aten.topk.default and place == 1:
        searched, _, dim, *_ = source.args
        size = size_of(searched.val.shape[dim]) if searched.val.dim() else None
        return size if isinstance(size, int) else None
    return None


def clamp_of_indices(build: Any, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """clamp(x, 0, n - 1) -> x, where x holds indices below n"""
    source, low, high = args
    count = count_of(source)
    if count is None or not all(isinstance(limit, int | None) for limit in (low, high)):
        return None
    return source if (low is None or low <= 0) and (high is None or high >= count - 1) else None


def fill_past_the_end(build: Any, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """masked_fill(x, ge(i, n), value) -> x, where i holds indices below n"""
    source, mask, _ = args
    while mask.op in (aten.reshape.default, aten.expand.default):
        mask = mask.args[0]
    if mask.op is not aten.ge.Scalar or shape_of(source.val) != shape_of(val):
        return None
    indices, end = mask.args
    count = count_of(indices)
    return source if count is not None and isinstance(end, int) and end >= count else None
