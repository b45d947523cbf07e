"""Attention of one token of each sequence over a cache in blocks, read where they lie."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.attention import OPS, copied, sized
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import HALVES, alike, at_most, contiguous, first, stored
from glmfuse.lowering.aten.gain import size
from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Gain, Request

_BLOCK: Final = 512
_ALIGNED: Final = 16
_CACHED: Final = 262144
_ROW: Final = 65535
_MASK_LAUNCHES: Final = 2


def _paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """The operator wants lengths as numbers on the host, and the graph has them on the device.

    So it is told that every sequence fills its blocks, and a mask hides the tokens from lengths[t] on: they are read
    for nothing, as the pattern reads them.
    """
    tokens = table.shape[1] * k_cache.shape[1]
    hidden = torch.arange(tokens, device=q.device, dtype=lengths.dtype) >= lengths[:, None]
    result: Tensor = torch.ops.npu.npu_fused_infer_attention_score(
        q.unsqueeze(2).contiguous(),
        k_cache.flatten(2),
        v_cache.flatten(2),
        atten_mask=hidden[:, None, None],
        actual_seq_lengths_kv=[tokens],
        block_table=table,
        num_heads=q.shape[1],
        num_key_value_heads=k_cache.shape[2],
        scale=scale,
        input_layout="BNSD",
        block_size=k_cache.shape[1],
    )[0]
    return result.squeeze(2)


def _limits(request: Request) -> str | None:
    q, k, v, table = (request.tensors[name] for name in ("q", "k_cache", "v_cache", "table"))
    _, block, kv_heads, width = k.shape
    each = table.shape[1]
    if not (isinstance(block, int) and isinstance(each, int)):
        return f"the blocks of a sequence, or their size, vary ({each}, {block}); the operator takes numbers"
    return first(
        (
            stored(q, HALVES),
            alike(q=q, k_cache=k, v_cache=v),
            None if k.shape == v.shape else f"keys of shape {k.shape} and values of shape {v.shape}",
            *sized(q.shape[0], q.shape[1], kv_heads, width),
            *_paged(k, v, table),
            at_most("tokens of a block", block, _BLOCK),
            at_most("cached tokens", block * each, _CACHED),
            None if block % _ALIGNED == 0 else f"blocks of {block} tokens, no multiple of {_ALIGNED}",
            at_most("a token's heads times width", kv_heads * width, _ROW),
        )
    )


def _paged(k: Layout, v: Layout, table: Layout) -> tuple[str | None, ...]:
    return (
        stored(table, (torch.int32,)),
        contiguous("table", table),
        contiguous("k_cache", k),
        contiguous("v_cache", v),
    )


def _gain(request: Request) -> Gain:
    """Blocks are read once, instead of gathered, written and read."""
    k, table = request.tensors["k_cache"], request.tensors["table"]
    row = int(k.shape[1]) * int(k.shape[2]) * int(k.shape[3]) * k.dtype.itemsize
    gathered = 2.0 * row * size(table) / table.dtype.itemsize
    return gain_of(request, 1 + _MASK_LAUNCHES, gathered + copied(request, "q"), 3 * gathered)


PAGED_ATTENTION = AclnnKernel(_paged_attention, OPS, _limits, _gain)
