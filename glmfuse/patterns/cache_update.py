"""New rows of a key or value cache."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern


@pattern(
    dims={"cache": "B K C D", "positions": "S", "rows": "B K S D"},
    examples=({"S": 7, "C": 11}, {"S": 13, "C": 17}),
    dtypes={"positions": torch.int64},
    updates="cache",
)
def cache_update(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """The cache with row positions[s] of every head replaced by rows[..., s, :].

    cache [B, kv_heads, C, head_dim], positions [S] int64 below C and distinct (index_copy
    leaves open which of two rows for one place is written last), rows [B, kv_heads, S, head_dim] -> the
    cache's shape. Where nothing needs the old cache, kernels write it in place. Source: StaticLayer.update of
    transformers.
    """
    return cache.index_copy(2, positions, rows)
