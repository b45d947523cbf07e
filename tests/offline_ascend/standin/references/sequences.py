"""How a call of attention for inference becomes sequences: batches, packed tokens, and keys in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.offline_ascend.standin.references.attention import layout_of

Lengths = Sequence[int] | None


@dataclass(frozen=True)
class Part:
    """One sequence: its number, and its query, key and value as [heads, length, dim]."""

    number: int
    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Pages:
    """Keys of a sequence lie in the blocks that its row of `table` names."""

    table: Tensor
    size: int
    heads: int

    def of(self, sequence: int, cache: Tensor, length: int) -> Tensor:
        """The first `length` keys of a sequence, [heads, length, dim].

        Raises:
            ValueError: the cache is neither [blocks, size, heads * dim] nor [blocks, heads, size, dim].
        """
        blocks = cache[self.table[sequence, : -(-length // self.size)].long()]
        if cache.dim() == 3:
            blocks = blocks.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if blocks.dim() != 4 or blocks.shape[1:3] != (self.heads, self.size):
            raise ValueError(
                f"a paged cache is [blocks, {self.size}, heads * dim] or [blocks, {self.heads}, {self.size}, dim], "
                f"not {list(cache.shape)}"
            )
        return blocks.transpose(0, 1).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class Geometry:
    """What the axes of query, key and value mean; `pages` says so for keys that are paged."""

    layout: str
    heads: int
    kv_heads: int
    pages: Pages | None = None

    def parts(self, query: Tensor, key: Tensor, value: Tensor, queries: Lengths, keys: Lengths) -> list[Part]:
        """The sequences of a call, with the lengths that it was given.

        Raises:
            ValueError: lengths are missing, or too few.
        """
        if self.pages is not None and keys is None:
            raise ValueError("paged keys need actual_seq_lengths_kv")
        return (self._packed if self.layout == "TND" else self._batched)(query, key, value, queries, keys)

    def _batched(self, query: Tensor, key: Tensor, value: Tensor, queries: Lengths, keys: Lengths) -> list[Part]:
        came = layout_of(self.layout.partition("_")[0])
        rows = came.split(query, self.heads)
        batch = rows.shape[0]
        of_query = _each(queries, batch, rows.shape[2])
        if self.pages is not None:
            lengths = _each(keys, batch, 0)
            sides = [[self.pages.of(b, cache, n) for b, n in enumerate(lengths)] for cache in (key, value)]
        else:
            whole = [came.split(each, self.kv_heads) for each in (key, value)]
            lengths = _each(keys, batch, whole[0].shape[2])
            sides = [[each[b, :, :n] for b, n in enumerate(lengths)] for each in whole]
        return [Part(b, rows[b, :, : of_query[b]], sides[0][b], sides[1][b]) for b in range(batch)]

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, queries: Lengths, keys: Lengths) -> list[Part]:
        """Tokens of all sequences behind each other; lengths are cumulative, those of paged keys are not."""
        if queries is None or keys is None:
            raise ValueError("TND needs actual_seq_lengths and actual_seq_lengths_kv")
        parts = []
        for b, rows in enumerate(_ranges(queries)):
            if self.pages is not None:
                k, v = (self.pages.of(b, cache, int(keys[b])) for cache in (key, value))
            else:
                k, v = (each[_ranges(keys)[b]].transpose(0, 1) for each in (key, value))
            parts.append(Part(b, query[rows].transpose(0, 1), k, v))
        return parts


def _each(lengths: Lengths, batch: int, whole: int) -> list[int]:
    """A length for each sequence, from one for each, one for all, or none."""
    if lengths is None:
        return [whole] * batch
    listed = [int(n) for n in lengths]
    if len(listed) != 1 and len(listed) < batch:
        raise ValueError(f"{len(listed)} lengths for {batch} sequences; give one for each, or one for all")
    return listed * batch if len(listed) == 1 else listed[:batch]


def _ranges(ends: Sequence[int]) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], ends, strict=False)]
