"""Attention by the operator that torch_npu has for inference, over the keys of a group and not of each head.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_fused_infer_attention_score.md.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import HALVES, Size, alike, at_most, contiguous, first, stored
from glmfuse.lowering.aten.gain import size
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import OWN
from glmfuse.matching.select import Gain, Request
from glmfuse.patterns.attention import repeated

OPS: Final = ("npu_fused_infer_attention_score",)

_WIDTH: Final = 512
_ALIGNED: Final = 16
_HEADS: Final = 256
_GROUP: Final = 64
_BATCH: Final = 65536
_CACHED: Final = 262144
_PROMPT: Final = 20971520
_TRIANGLE: Final = 2048
_LEFT_UP: Final = 2
_EXACT: Final = 0
_EXACT_OR_NOTHING: Final = 2
"""`inner_precise`: a row that sees no token is 0; for more than one query, as torch_npu passes it for sdpa."""

_STATISTICS: Final = 64
"""Bytes of a row's maximum and sum, eight fp32 of each, that sdpa's operator on an NPU writes besides."""


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Scores in fp32 and probabilities as the values are stored; what is True in torch's mask is False in this one."""
    if causal:
        ones = torch.ones(_TRIANGLE, _TRIANGLE, dtype=torch.bool, device=q.device)
        return attend(q, k, v, scale, atten_mask=ones.triu(1), sparse_mode=_LEFT_UP)
    if mask is None:
        return attend(q, k, v, scale)
    precise = _EXACT if q.shape[2] == 1 else _EXACT_OR_NOTHING
    return attend(q, k, v, scale, atten_mask=torch.logical_not(mask).contiguous(), inner_precise=precise)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, **rest: object) -> Tensor:
    """The operator on [batch, heads, tokens, width]; it reads contiguous tensors."""
    result: Tensor = torch.ops.npu.npu_fused_infer_attention_score(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        num_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        scale=scale,
        input_layout="BNSD",
        **rest,
    )[0]
    return result


def attendable(q: Layout, k: Layout, v: Layout) -> str | None:
    """Whether the operator takes these queries, keys and values, [batch, heads, tokens, width]."""
    batch, heads, queries, width = q.shape
    one = queries == 1
    return first(
        (
            stored(q, HALVES),
            alike(q=q, k=k, v=v),
            None if k.shape == v.shape else f"keys of shape {k.shape} and values of shape {v.shape}",
            *sized(batch, heads, k.shape[1], width),
            at_most("tokens", queries, _PROMPT),
            at_most("cached tokens", k.shape[2], _CACHED if one else _PROMPT),
        )
    )


def sized(batch: Size, heads: Size, kv_heads: Size, width: Size) -> tuple[str | None, ...]:
    """Limits of the operator that each kernel of attention has.

    A head of whole 32 bytes frees the batch of its tighter limit, so of the two alignments that the documents
    name it is the one asked for.
    """
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(width, int)):
        return (f"heads or their width vary ({heads}, {kv_heads}, {width})",)
    aligned = width % _ALIGNED == 0
    return (
        at_most("batch", batch, _BATCH),
        at_most("heads", heads, _HEADS),
        at_most("heads of a group", heads // kv_heads, _GROUP),
        at_most("head_dim", width, _WIDTH),
        None if aligned else f"head_dim {width} is no multiple of {_ALIGNED}",
    )


def _limits(request: Request) -> str | None:
    q, k, v, mask = (request.tensors.get(name) for name in ("q", "k", "v", "mask"))
    assert q is not None
    assert k is not None
    assert v is not None
    causal: bool = request.scalars["causal"]
    alone = causal and q.shape[2] == 1
    return attendable(q, k, v) or first(
        (
            "one query that sees the first token alone; the operator takes no triangle for it" if alone else None,
            None if mask is None else _masked(q, k, mask),
        )
    )


def _masked(q: Layout, k: Layout, mask: Layout) -> str | None:
    """Whether there is one mask for all heads, of the scores' size."""
    batch = q.shape[0]
    taken = [(size, 1, q.shape[2], k.shape[2]) for size in (batch, 1)]
    return None if mask.shape in taken else f"a mask of shape {mask.shape}; the operator takes {taken[0]}"


def copied(request: Request, *names: str) -> float:
    """Bytes read and written to make these arguments contiguous, where they are not."""
    apart = [request.tensors[name] for name in names if contiguous(name, request.tensors[name])]
    return sum(2.0 * size(at) for at in apart)


def group_of(request: Request) -> float:
    """Query heads for each head of keys and values."""
    return int(request.tensors["q"].shape[1]) / int(request.tensors["k"].shape[1])


def _gain(request: Request) -> Gain:
    """No keys and values repeated and no statistics written, against copies of what is not contiguous.

    A spelling of another front end is an operator already: nothing is known that replacing it would save.
    """
    q, held = request.tensors["q"], 2.0 * size(request.tensors["k"])
    spelling, rows = request.variant.spelling, size(q) / (int(q.shape[-1]) * q.dtype.itemsize)
    launches = 3 if request.scalars["causal"] else 1 + ("mask" in request.tensors)
    times = 1 + 2 * group_of(request) if spelling == repeated.__name__ else 1
    written = _STATISTICS * rows if spelling in (OWN, repeated.__name__) else 0
    return gain_of(request, launches, held + copied(request, "q", "k", "v"), held * times + written)


ATTENTION = AclnnKernel(_attention, OPS, _limits, _gain)
