"""What a quantised feed-forward kernel is built for; no pypto here, both sides of the worker load it."""

from __future__ import annotations

from dataclasses import dataclass

from glmfuse.lowering.pypto.tiling import CubeTile


@dataclass(frozen=True, slots=True)
class FeedForward:
    """What the kernel is built for.

    merged: gate and up are the halves of one matrix. held: whether weights lie [out, in]. is_coded: whether x comes as
    codes already. block: tokens of a round. rows, width: vector tile over hidden. mid_rows, mid_width: over what the
    activation makes. out_rows: over the results, as wide as a cube tile of them, so that each waits for one task
    alone. wide, narrow: cube tiles of the projections up and down. codes: "DT_INT8" or "DT_FP8E4M3".
    """

    hidden: int
    inter: int
    out: int
    merged: bool
    held: bool
    is_coded: bool
    block: int
    rows: int
    width: int
    mid_rows: int
    mid_width: int
    out_rows: int
    wide: CubeTile
    narrow: CubeTile
    codes: str
    dtype: str


@dataclass(frozen=True, slots=True)
class PackedFeedForward:
    """What a feed-forward kernel over int4 weights, two in a byte, is built for.

    plan: as for int8 weights [in, out]; its `inter` and `out` are outputs, twice the bytes of a row. groups,
    down_groups: of the inputs of the projections up and down, each with a scale of its own. unpack, down_unpack: vector
    tiles, rows and bytes, that take the bytes apart.
    """

    plan: FeedForward
    groups: int
    down_groups: int
    unpack: tuple[int, int]
    down_unpack: tuple[int, int]
