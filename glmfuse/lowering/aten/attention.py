"""Attention that reads each key and value once for its whole group of heads, and repeats none of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glmfuse.lowering.aten.gain import of_bytes, size
from glmfuse.lowering.target import Kernel
from glmfuse.matching.select import Gain, Request
from glmfuse.patterns.attention import repeated
from glmfuse.patterns.eager_attention import eager_attention


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """One query of each sequence: the heads of a group are the rows of one product."""
    if not _is_packed(q.shape[2], causal):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True)
    batch, heads, _, width = q.shape
    rows = q.reshape(batch, k.shape[1], heads // k.shape[1], width)
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale).reshape(q.shape)


def _is_packed(queries: object, causal: bool) -> bool:
    return queries == 1 and not causal


def _supports(request: Request) -> str | None:
    q, k, mask = (request.tensors.get(name) for name in ("q", "k", "mask"))
    assert q is not None
    assert k is not None
    if q.device.type != "cpu":
        return f"written for torch's attention on a CPU, not on {q.device.type}"
    if mask is not None and _is_packed(q.shape[2], request.scalars["causal"]) and mask.shape[1] != 1:
        return "the heads have masks of their own"
    if q.shape[1] == k.shape[1]:
        return "every head has keys and values of its own"
    return None


def _gain(request: Request) -> Gain:
    """Bytes of keys and values: once for each group, against once for each head, or written and read so."""
    q = request.tensors["q"]
    held, group = _held(request)
    copies = 1 + 2 * group if request.variant.spelling == repeated.__name__ else group
    once = 1 if _is_packed(q.shape[2], request.scalars["causal"]) else group
    return of_bytes(held * once, held * copies)


def _held(request: Request) -> tuple[int, float]:
    """Bytes of keys and values, and the heads of a group."""
    q, k, v = (request.tensors[name] for name in "qkv")
    return size(k) + size(v), int(q.shape[1]) / int(k.shape[1])


def _supports_eager(request: Request) -> str | None:
    return None if request.variant.spelling else "nothing is repeated"


def _gain_eager(request: Request) -> Gain:
    """Bytes of keys and values: read for each product, against written and read once more for each head."""
    held, group = _held(request)
    return of_bytes(held, held * (1 + 2 * group))


ATTENTION = Kernel(_attention, _supports, _gain)
EAGER_ATTENTION = Kernel(eager_attention.function, _supports_eager, _gain_eager)
