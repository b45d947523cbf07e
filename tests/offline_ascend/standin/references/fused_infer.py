"""npu_fused_infer_attention_score: attention of inference, over plain or paged keys, and its forms under capture.

Source: the operator's document in torch_npu 2.13, and hicann/ops-transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.attention import EVERYTHING, Attended, Mask, attend, layout_of
from tests.offline_ascend.standin.references.reference import Reference, absent
from tests.offline_ascend.standin.references.sequences import Geometry, Pages, Part

NAME = "npu_fused_infer_attention_score"


def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = EVERYTHING,
    next_tokens: int = EVERYTHING,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    softmax_lse_flag: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """out in the query's layout, and log-sum-exp: [batch, heads, queries, 1], or [tokens, heads, 1] for TND.

    Lengths are the sequences' own, but for TND the queries' are cumulative, and so are the keys' unless they are
    paged. With block_table [batch, blocks] keys and values are [blocks, block_size, heads * dim] or
    [blocks, heads, block_size, dim]. pse_shift [batch or 1, heads, queries, keys] is added to the scores; atten_mask
    is True where a key is hidden. Queries beyond their length give 0.

    Raises:
        ValueError: what the operator's document forbids of masks, lengths and caches.
    """
    absent(NAME, **{name: given for name, given in others.items() if isinstance(given, Tensor) or given})
    kv_heads = num_key_value_heads or num_heads
    pages = None if block_table is None else Pages(block_table, block_size, kv_heads)
    geometry = Geometry(input_layout, num_heads, kv_heads, pages)
    mask = Mask(_checked(atten_mask, sparse_mode, query, input_layout), sparse_mode, pre_tokens, next_tokens)
    parts = geometry.parts(query, key, value, actual_seq_lengths, actual_seq_lengths_kv)
    done = [
        attend(p.query, p.key, p.value, scale, mask.of(p.number, *scores_of(p)), _shift(pse_shift, p, input_layout))
        for p in parts
    ]
    out, lse = (_tokens if input_layout == "TND" else _batches)(query, done, geometry)
    return out, lse if softmax_lse_flag else torch.empty(0)


def _checked(mask: Tensor | None, mode: int, query: Tensor, layout: str) -> Tensor | None:
    """The documented shapes: causal modes need their triangle, whole masks have no axis of heads."""
    if mask is None:
        if mode in (1, 2, 3, 4):
            raise ValueError(f"{NAME}: sparse_mode {mode} needs an atten_mask")
        return None
    if mask.dim() == 4 and mask.shape[1] != 1:
        raise ValueError(f"{NAME}: atten_mask is [batch or 1, 1, q, k], one for all heads, not {list(mask.shape)}")
    if mask.dim() == 3 and mask.shape[0] != 1:
        raise ValueError(f"{NAME}: atten_mask of three axes is [1, q, k], not {list(mask.shape)}")
    one_query = layout != "TND" and layout_of(layout.partition("_")[0]).split(query, 1).shape[2] == 1
    if mode in (0, 1) and mask.dim() == 2 and one_query:
        return mask[:, None, None, :]  # of one query, two axes are [batch, k]
    return mask


def scores_of(part: Part) -> tuple[int, int]:
    """How many queries and keys."""
    return part.query.shape[1], part.key.shape[1]


def _shift(shift: Tensor | None, part: Part, layout: str) -> Tensor | None:
    """pse_shift of one sequence, [heads, queries, keys], from [batch or 1, heads, q, k] of the query's dtype."""
    if shift is None:
        return None
    found, taken = (shift.dtype, *shift.shape[1:]), (part.query.dtype, part.query.shape[0], *scores_of(part))
    if layout == "TND" or shift.dim() != 4 or found != taken or not shift.is_contiguous():
        raise ValueError(f"{NAME}: pse_shift is contiguous [batch or 1, {', '.join(map(str, taken[1:]))}], {taken[0]}")
    return shift[part.number if shift.shape[0] > 1 else 0]


def _tokens(query: Tensor, done: list[Attended], geometry: Geometry) -> tuple[Tensor, Tensor]:
    out, lse = query.new_zeros(*query.shape[:2], done[0].out.shape[-1]), torch.zeros(*query.shape[:2], 1)
    at = 0
    for one in done:
        rows = slice(at, at + one.out.shape[1])
        out[rows], lse[rows] = one.out.transpose(0, 1), one.log_sum_exp.transpose(0, 1)
        at = rows.stop
    return out, lse


def _batches(query: Tensor, done: list[Attended], geometry: Geometry) -> tuple[Tensor, Tensor]:
    came, _, goes = geometry.layout.partition("_")
    shape = layout_of(came).split(query, geometry.heads).shape[:3]
    out, lse = query.new_zeros(*shape, done[0].out.shape[-1]), torch.zeros(*shape, 1)
    for b, one in enumerate(done):
        out[b, :, : one.out.shape[1]], lse[b, :, : one.out.shape[1]] = one.out, one.log_sum_exp
    return layout_of(goes or came).join(out).clone(memory_format=torch.contiguous_format), lse


def into(*args: Any, workspace: Tensor | None = None, out: list[Tensor], **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The form with outputs given, which npugraph_ex calls instead: its lengths can be updated between replays."""
    results = fused_infer_attention_score(*args, **kwargs)
    for place, result in zip(out, results, strict=True):
        if result.numel():
            place.copy_(result)
    return out[0], out[1]


def _given(*args: Any, out: list[Tensor], **kwargs: Any) -> tuple[Tensor, Tensor]:
    return out[0], out[1]


def max_workspace(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Scratch memory for any lengths; the reference needs none, and takes one kilobyte."""
    return torch.empty(1024, dtype=torch.uint8, device=query.device)


OPS = {
    NAME: Reference(fused_infer_attention_score),
    f"{NAME}.out": Reference(into, _given),
    f"_{NAME}_get_max_workspace": Reference(max_workspace, max_workspace),
}
