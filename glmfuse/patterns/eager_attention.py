"""Attention as products and a softmax, with a mask that is added."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern, spelling_of
from glmfuse.patterns.repeat_kv import repeat_kv


def _probabilities(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


_SIZES = (
    {"B": 2, "K": 3, "G": 5, "S": 7, "C": 11, "D": 13},
    {"B": 3, "K": 5, "G": 2, "S": 13, "C": 17, "D": 7},
)
"""Small: products of all sizes, and no two alike."""


@pattern(dims={"q": "B K*G S D", "k": "B K C D", "v": "B K C D", "bias": "B 1 S C"}, examples=_SIZES)
def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v, where scores and probabilities are rounded to q's dtype.

    q [B, heads, S, head_dim], k and v [B, kv_heads, C, head_dim], bias [B, 1, S, C] of q's dtype -> [B, heads,
    S, head_dim]; heads are a multiple of kv_heads. Unlike `attention` a row that is masked everywhere by a
    finite bias is the mean of all values. Source: eager_attention_forward of transformers.
    """
    batch, heads, queries, width = q.shape
    kv_heads, cached = k.shape[1:3]
    rows = q.reshape(batch, kv_heads, heads // kv_heads * queries, width)
    scores = torch.matmul(rows, k.transpose(2, 3)) * scale
    if bias is not None:
        scores = (scores.view(batch, kv_heads, -1, queries, cached) + bias[:, :, None]).view(scores.shape)
    return torch.matmul(_probabilities(scores), v).view(q.shape)


@spelling_of(eager_attention)
def repeated(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """With keys and values repeated for each head of the group."""
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    return torch.matmul(_probabilities(scores if bias is None else scores + bias), v)
