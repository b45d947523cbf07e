"""Keys and values repeated for each head of their group; no pattern by itself."""

from __future__ import annotations

from torch import Tensor


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """x [B, kv_heads, C, head_dim] -> [B, heads, C, head_dim].  Source: repeat_kv of transformers."""
    batch, kv_heads, tokens, width = x.shape
    each = heads // kv_heads
    return x[:, :, None].expand(batch, kv_heads, each, tokens, width).reshape(batch, heads, tokens, width)
