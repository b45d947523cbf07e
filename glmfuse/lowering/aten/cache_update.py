"""New rows written into the cache that they belong to; the rest of it stays where it is."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.aten.gain import of_bytes, size
from glmfuse.lowering.target import Kernel
from glmfuse.matching.select import Gain, Request


def _cache_update(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    return cache.index_copy_(2, positions, rows)


def _gain(request: Request) -> Gain:
    """A functional update copies the cache to change it, and back into its place: four times its bytes."""
    rows, cache = size(request.tensors["rows"]), size(request.tensors["cache"])
    return of_bytes(2 * rows, 4 * cache + 2 * rows)


CACHE_UPDATE = Kernel(_cache_update, gain_fn=_gain, overwrites=True)
