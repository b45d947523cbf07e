"""What a router's kernel is built for; no pypto here, both sides of the worker load it."""

from __future__ import annotations

from dataclasses import dataclass

from glmfuse.lowering.pypto.tiling import CubeTile


@dataclass(frozen=True, slots=True)
class Gate:
    """What the kernel is built for.

    block: tokens of a round. rows, and x_rows with width: the vector tiles of scores and of the cast of x, which is
    made where x is stored otherwise than w, of so many channels (`cast`) at a time. cube: tile of the logits' product.
    """

    hidden: int
    experts: int
    top_k: int
    n_group: int
    topk_group: int
    renormalize: bool
    scale: float
    block: int
    rows: int
    x_rows: int
    width: int
    cast: int
    cube: CubeTile
    x_dtype: str
    w_dtype: str
