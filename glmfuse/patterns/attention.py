"""Attention of a group of query heads over the keys and values of one head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glmfuse.matching.register import pattern


@pattern(
    dims={"q": "B K*G S D", "k": "B K C D", "v": "B K C D", "mask": "B 1 S C"},
    dtypes={"mask": torch.bool},
)
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v, over the tokens where the mask is True.

    q [B, heads, S, head_dim], k and v [B, kv_heads, C, head_dim], mask [B, 1, S, C] bool -> [B, heads, S,
    head_dim]; heads are a multiple of kv_heads. Source: Vaswani et al. 2017, equation 1; Ainslie et al. 2023
    for the groups of heads.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
