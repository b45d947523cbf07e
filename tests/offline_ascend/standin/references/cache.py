"""Writing keys and values into caches.  A slot is a place in the cache: block * block_size + offset; -1 is nowhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference, absent, only


def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """key, value [tokens, heads, dim] into caches [blocks, block_size, heads, dim], in place."""
    name = "npu_scatter_pa_kv_cache"
    absent(name, compress_lens=compress_lens, compress_seq_offsets=compress_seq_offsets, seq_lens=seq_lens)
    only(name, cache_mode=(cache_mode, "Norm"))
    for rows, cache in ((key, key_cache), (value, value_cache)):
        _put(rows, cache, slot_mapping)


def _put(rows: Tensor, cache: Tensor, slots: Tensor) -> None:
    there = slots >= 0
    cache.view(-1, *cache.shape[2:])[slots[there].long()] = rows[there].to(cache.dtype)


def scatter_pa_kv_cache_functional(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same into copies of the caches."""
    caches = key_cache.clone(), value_cache.clone()
    scatter_pa_kv_cache(key, value, *caches, slot_mapping, **options)
    return caches


def scatter_nd_update_(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """input[indices[..., 0], indices[..., 1], ...] = updates, in place; indices [..., axes that are indexed]."""
    input[tuple(indices.long().unbind(-1))] = updates.to(input.dtype)
    return input


def scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The same into a copy."""
    return scatter_nd_update_(input.clone(memory_format=torch.contiguous_format), indices, updates)


OPS = {
    "npu_scatter_pa_kv_cache": Reference(scatter_pa_kv_cache),
    "npu_scatter_pa_kv_cache_functional": Reference(scatter_pa_kv_cache_functional),
    "npu_scatter_nd_update_": Reference(scatter_nd_update_),
    "npu_scatter_nd_update": Reference(scatter_nd_update),
}
