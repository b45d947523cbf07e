"""What an attention kernel is built for; no pypto here, both sides of the worker load it."""

from __future__ import annotations

from dataclasses import dataclass

from glmfuse.lowering.pypto.tiling import CubeTile


@dataclass(frozen=True, slots=True)
class Decode:
    """What the kernel is built for: one query for each sequence, keys and values from a cache.

    group: query heads of one kv head. block: cached tokens that lie together and are read at once. piece:
    cached tokens of one softmax, a number of blocks. pieces: most pieces of a sequence. rows, merge_rows:
    vector tiles of the softmax and of the merge of pieces. score, weigh: cube tiles of the two products.
    together: blocks whose scores are one task. paged, masked: which kernel.
    """

    group: int
    kv_heads: int
    head_dim: int
    scale: float
    block: int
    piece: int
    pieces: int
    rows: int
    merge_rows: int
    score: CubeTile
    weigh: CubeTile
    together: int
    paged: bool
    masked: bool
    dtype: str
