"""Attention of one new token of each sequence over a cache in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.attention import attention


@pattern(
    dims={"q": "T K*G D", "k_cache": "N P K D", "v_cache": "N P K D", "table": "T M", "lengths": "T"},
    examples=(
        {"T": 2, "K": 3, "G": 5, "D": 13, "N": 7, "P": 4, "M": 11},
        {"T": 3, "K": 5, "G": 2, "D": 7, "N": 11, "P": 8, "M": 13},
    ),
    dtypes={"table": torch.int32, "lengths": torch.int32},
)
def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Attention over the first lengths[t] tokens of the blocks that table[t] names.

    q [tokens, heads, head_dim], k_cache and v_cache [blocks, block, kv_heads, head_dim], table [tokens,
    blocks of a sequence] int32, lengths [tokens] int32, at least 1 -> [tokens, heads, head_dim]. Source:
    Kwon et al. 2023.
    """
    k, v = (cache[table].flatten(1, 2).transpose(1, 2) for cache in (k_cache, v_cache))
    position = torch.arange(k.shape[2], device=lengths.device)
    mask = position < lengths[:, None]
    return attention(q.unsqueeze(2), k, v, mask[:, None, None], scale, False).squeeze(2)
