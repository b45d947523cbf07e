"""Attention of a group of query heads over the keys and values of one head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern, spelling_of
from glmfuse.patterns.repeat_kv import repeat_kv

_SIZES = (
    {"B": 2, "K": 3, "G": 5, "S": 7, "C": 11, "D": 16},
    {"B": 3, "K": 5, "G": 2, "S": 13, "C": 17, "D": 32},
)
"""Small, and no two alike; an NPU's attention takes heads of whole 16s, and is called otherwise for one query."""


@pattern(
    dims={"q": "B K*G S D", "k": "B K C D", "v": "B K C D", "mask": "B 1 S C"},
    examples=_SIZES,
    cases=({}, {"S": 1}),
    dtypes={"mask": torch.bool},
)
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale q k^T) v, over the tokens where the mask is True; causal: query s sees the first s + 1.

    q [B, heads, S, head_dim], k and v [B, kv_heads, C, head_dim], mask [B, 1, S, C] bool -> [B, heads, S,
    head_dim]; heads are a multiple of kv_heads. Source: Vaswani et al. 2017, equation 1; Ainslie et al. 2023
    for the groups of heads.
    """
    require(mask is None or not causal, "a mask, or the causal one")
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True)


@spelling_of(attention)
def repeated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """With keys and values repeated for each head of the group.  Source: repeat_kv of transformers."""
    require(mask is None or not causal, "a mask, or the causal one")
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
