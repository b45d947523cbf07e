"""npu_fused_infer_attention_score: attention of inference, over plain or paged keys, and its forms under capture.

Source: the operator's document in torch_npu 2.13, and hicann/ops-transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.attention import EVERYTHING, Attended, Mask, attend, layout_of
from tests.offline_ascend.standin.references.reference import Reference, absent

NAME = "npu_fused_infer_attention_score"


@dataclass(frozen=True)
class Part:
    """One sequence: its number, and its query, key and value as [heads, length, dim]."""

    number: int
    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def scores(self) -> tuple[int, int]:
        """How many queries and keys."""
        return self.query.shape[1], self.key.shape[1]


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
    [blocks, heads, block_size, dim]. pse_shift is added to the scores; atten_mask is True where a key is hidden.
    Queries beyond their length give 0.
    """
    absent(NAME, **{name: value for name, value in others.items() if isinstance(value, Tensor) or value})
    kv_heads = num_key_value_heads or num_heads
    mask = Mask(_checked(atten_mask, sparse_mode, query, input_layout), sparse_mode, pre_tokens, next_tokens)
    pages = None if block_table is None else _Pages(block_table, block_size, kv_heads)
    split = _packed if input_layout == "TND" else _batched
    lengths = actual_seq_lengths, actual_seq_lengths_kv
    parts = split(query, key, value, lengths, pages, (input_layout, num_heads, kv_heads))
    done = [
        attend(s.query, s.key, s.value, scale, mask.of(s.number, *s.scores), _shift(pse_shift, s, input_layout))
        for s in parts
    ]
    out, lse = (_joined_tokens if input_layout == "TND" else _joined_batches)(query, done, input_layout, num_heads)
    return out, lse if softmax_lse_flag else torch.empty(0)


def _checked(mask: Tensor | None, mode: int, query: Tensor, layout: str) -> Tensor | None:
    """The documented shapes: causal modes need their triangle, whole masks have no axis of heads."""
    if mask is None:
        if mode in (1, 2, 3, 4):
            raise ValueError(f"{NAME}: sparse_mode {mode} needs an atten_mask")
        return None
    if mask.dim() == 4 and mask.shape[1] != 1:
        raise ValueError(
            f"{NAME}: atten_mask has one mask for all heads, [batch or 1, 1, q, k], not {list(mask.shape)}"
        )
    if mask.dim() == 3 and mask.shape[0] != 1:
        raise ValueError(f"{NAME}: atten_mask of three axes is [1, q, k], not {list(mask.shape)}")
    one_query = layout != "TND" and layout_of(layout.split("_")[0]).split(query, 1).shape[2] == 1
    if mode in (0, 1) and mask.dim() == 2 and one_query:
        return mask[:, None, None, :]  # of one query, two axes are [batch, k]
    return mask


def _shift(shift: Tensor | None, part: Part, layout: str) -> Tensor | None:
    """pse_shift of one sequence, [heads, queries, keys], from [batch or 1, heads, q, k] of the query's dtype."""
    if shift is None:
        return None
    found, taken = (shift.dtype, *shift.shape[1:]), (part.query.dtype, part.query.shape[0], *part.scores)
    if layout == "TND" or shift.dim() != 4 or found != taken or not shift.is_contiguous():
        raise ValueError(f"{NAME}: pse_shift is contiguous [batch or 1, {', '.join(map(str, taken[1:]))}], {taken[0]}")
    return shift[part.number if shift.shape[0] > 1 else 0]


Lengths = tuple[Sequence[int] | None, Sequence[int] | None]
Names = tuple[str, int, int]


def _batched(
    query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, pages: _Pages | None, names: Names
) -> list[Part]:
    layout, heads, kv_heads = names
    queries = layout_of(layout.split("_")[0]).split(query, heads)
    batch = queries.shape[0]
    of_query = _each(lengths[0], batch, queries.shape[2])
    if pages is not None:
        assert lengths[1] is not None, "paged keys need actual_seq_lengths_kv"
        of_key = _each(lengths[1], batch, 0)
        keys, values = ([pages.of(b, cache, n) for b, n in enumerate(of_key)] for cache in (key, value))
    else:
        whole = [layout_of(layout.split("_")[0]).split(each, kv_heads) for each in (key, value)]
        _named(queries, heads, "num_heads")
        _named(whole[0], kv_heads, "num_key_value_heads")
        of_key = _each(lengths[1], batch, whole[0].shape[2])
        keys, values = ([each[b, :, :n] for b, n in enumerate(of_key)] for each in whole)
    return [Part(b, queries[b, :, : of_query[b]], keys[b], values[b]) for b in range(batch)]


def _named(heads: Tensor, count: int, name: str) -> None:
    """A head axis has as many as are named: [batch, heads, tokens, dim]."""
    if heads.shape[1] != count:
        raise ValueError(f"{NAME}: {name} is {count}, and there are {heads.shape[1]} heads")


def _each(lengths: Sequence[int] | None, batch: int, whole: int) -> list[int]:
    if lengths is None:
        return [whole] * batch
    listed = [int(n) for n in lengths]
    if len(listed) != 1 and len(listed) < batch:
        raise ValueError(f"{NAME}: {len(listed)} lengths for {batch} sequences")
    return listed * batch if len(listed) == 1 else listed[:batch]


def _packed(
    query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, pages: _Pages | None, names: Names
) -> list[Part]:
    if lengths[0] is None or lengths[1] is None:
        raise ValueError(f"{NAME}: TND needs actual_seq_lengths and actual_seq_lengths_kv")
    parts = []
    for b, rows in enumerate(_ranges(lengths[0])):
        if pages is not None:
            length = int(lengths[1][b])
            k, v = pages.of(b, key, length), pages.of(b, value, length)
        else:
            some = _ranges(lengths[1])[b]
            k, v = key[some].transpose(0, 1), value[some].transpose(0, 1)
        parts.append(Part(b, query[rows].transpose(0, 1), k, v))
    return parts


def _ranges(ends: Sequence[int]) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _Pages:
    table: Tensor
    size: int
    heads: int

    def of(self, sequence: int, cache: Tensor, length: int) -> Tensor:
        """The first `length` keys of a sequence, [heads, length, dim]."""
        blocks = cache[self.table[sequence, : -(-length // self.size)].long()]
        if cache.dim() == 3:
            blocks = blocks.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if blocks.shape[1:3] != (self.heads, self.size):
            raise ValueError(
                f"{NAME}: a paged cache is [blocks, {self.size}, heads * dim] or [blocks, {self.heads}, {self.size}, "
                f"dim], not {list(cache.shape)}"
            )
        return blocks.transpose(0, 1).flatten(1, 2)[:, :length]


def _joined_tokens(query: Tensor, done: list[Attended], layout: str, heads: int) -> tuple[Tensor, Tensor]:
    out, lse = torch.zeros(*query.shape[:2], done[0].out.shape[-1], dtype=query.dtype), torch.zeros(*query.shape[:2], 1)
    at = 0
    for one in done:
        rows = slice(at, at + one.out.shape[1])
        out[rows], lse[rows] = one.out.transpose(0, 1), one.log_sum_exp.transpose(0, 1)
        at = rows.stop
    return out, lse


def _joined_batches(query: Tensor, done: list[Attended], layout: str, heads: int) -> tuple[Tensor, Tensor]:
    came, _, goes = layout.partition("_")
    queries = layout_of(came).split(query, heads)
    out = torch.zeros(*queries.shape[:3], done[0].out.shape[-1], dtype=query.dtype)
    lse = torch.zeros(*queries.shape[:3], 1)
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
