"""`attention` and `paged_attention` as one PyPTO kernel: one query for each sequence."""

from __future__ import annotations

import sympy
import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.decode import Decode
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, half, same_dtype
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import FP32, CubeTile, power_below, round_up, token_block
from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Request

_UNIT = 16
"""Rows and columns of the cube cores' smallest tile."""

_LIVE_ROWS = 4
"""fp32 rows of a piece at once; three fit without a spill (measured), the last is for a mask and sums."""

_LIVE_RESULTS = 5
"""fp32 results of all pieces at once: both roundings, their sum, its product with the weights, and a copy."""

_LEAST_PIECE, _MOST_PIECE = 256, 1024
"""Tokens of a piece: fewer cost more tasks than they save time, more leave cores idle."""

_MOST_PIECES = 32
"""Pieces of a sequence; a longer cache has larger pieces."""

_LARGEST_PIECE = 8192
"""One row of this many scores fits the unified buffer."""

_SPARED = 2
"""On a CPU attention is one operator; it stands for two products and a softmax."""

_MOST_GROUP = 96
_MOST_WIDTH = 256


def _limits(chip: Chip, site: Request) -> str | None:
    q, k, v = (site.tensors[name] for name in "qkv")
    mask = site.tensors.get("mask")
    return first(
        lambda: _one_query(q.shape[2]),
        lambda: "a causal attention of one query sees one key" if site.scalars["causal"] else None,
        lambda: _heads_fit(q, k, v, q.shape[1], k.shape[1]),
        lambda: _cache_fits(k.shape[2]),
        lambda: None if mask is None else _is_row_per_sequence(mask, q, k),
        lambda: contiguous(site.outputs[0]),
    )


def _paged_limits(chip: Chip, site: Request) -> str | None:
    q, k, v, table = (site.tensors[name] for name in ("q", "k_cache", "v_cache", "table"))
    block = k.shape[1]
    return first(
        lambda: _heads_fit(q, k, v, q.shape[1], k.shape[2]),
        lambda: _block_fits(chip, block, int(q.shape[1]) // int(k.shape[2]), int(q.shape[2])),
        lambda: _cache_fits(block * table.shape[1]),
        lambda: contiguous(site.outputs[0]),
    )


def _one_query(queries: int | sympy.Expr) -> str | None:
    return None if queries == 1 else f"{queries} queries of a sequence; the kernel takes 1"


def _heads_fit(q: Layout, k: Layout, v: Layout, heads: int | sympy.Expr, kv_heads: int | sympy.Expr) -> str | None:
    width = q.shape[-1]

    def group() -> str | None:
        size = int(heads) // int(kv_heads)
        return None if size <= _MOST_GROUP else f"{size} heads of one kv head exceed {_MOST_GROUP}"

    return first(
        lambda: half(q),
        lambda: same_dtype(q, k),
        lambda: same_dtype(q, v),
        lambda: fixed("head_dim", width),
        lambda: None if width <= _MOST_WIDTH else f"head_dim {width} exceeds {_MOST_WIDTH}",
        lambda: None if v.shape[-1] == width else f"values of {v.shape[-1]} channels, keys of {width}",
        lambda: fixed("the number of heads", heads) or fixed("the number of kv heads", kv_heads),
        group,
    )


def _block_fits(chip: Chip, block: int | sympy.Expr, group: int, head_dim: int) -> str | None:
    if not isinstance(block, int):
        return fixed("a block", block)
    most = _most_block(chip, group, head_dim, 2)
    if block % _UNIT:
        return f"a block of {block} tokens is no multiple of {_UNIT}"
    return None if block <= most else f"a block of {block} tokens exceeds {most}"


def _cache_fits(tokens: int | sympy.Expr) -> str | None:
    most = _MOST_PIECES * _LARGEST_PIECE
    if not isinstance(tokens, int):
        return None  # how far it grows is not known; `launch` makes of it what it is
    return None if tokens <= most else f"{tokens} cached tokens exceed {most}"


def _is_row_per_sequence(mask: Layout, q: Layout, k: Layout) -> str | None:
    if mask.dtype != torch.bool:
        return f"a mask of {mask.dtype}; the kernel takes torch.bool"
    expected = (q.shape[0], 1, 1, k.shape[2])
    return None if mask.shape == expected else f"a mask of shape {mask.shape}; the kernel takes {expected}"


def _launch(chip: Chip, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Launch:
    batch, heads, _, width = q.shape
    kv_heads, length = k.shape[1:3]
    plan = _plan(chip, q.dtype, batch, heads, kv_heads, width, length, None, scale, masked=mask is not None)
    caches = (k.reshape(-1, width), v.reshape(-1, width))
    masks = () if mask is None else (mask.reshape(batch, length),)
    return _launched(plan, (q.reshape(-1, width), *caches, *masks), tuple(q.shape), q.dtype)


def _paged_launch(
    chip: Chip, q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Launch:
    tokens, heads, width = q.shape
    block, kv_heads = k_cache.shape[1:3]
    plan = _plan(chip, q.dtype, tokens, heads, kv_heads, width, block * table.shape[1], block, scale, masked=False)
    caches = (cache.reshape(-1, kv_heads * width) for cache in (k_cache, v_cache))
    inputs = (q.reshape(-1, width), *caches, table.to(torch.int32), lengths.to(torch.int32))
    return _launched(plan, inputs, tuple(q.shape), q.dtype)


def _launched(plan: Decode, inputs: tuple[Tensor, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Launch:
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.attention:build", plan=plan)
    return Launch(kernel, inputs, ((tuple(inputs[0].shape), dtype),), lambda made: made[0].view(shape))


def _plan(
    chip: Chip,
    dtype: torch.dtype,
    sequences: int,
    heads: int,
    kv_heads: int,
    width: int,
    capacity: int,
    paged_block: int | None,
    scale: float,
    *,
    masked: bool,
) -> Decode:
    group = heads // kv_heads
    piece = _piece(chip, sequences * kv_heads, capacity)
    block = min(piece, _most_block(chip, group, width, dtype.itemsize)) if paged_block is None else paged_block
    piece = max(1, piece // block) * block
    pieces = token_block(-(-capacity // piece), _MOST_PIECES)
    results = max(1, chip.ub // (_LIVE_RESULTS * pieces * width * FP32))
    return Decode(
        group=group,
        kv_heads=kv_heads,
        head_dim=width,
        scale=scale,
        block=block,
        piece=piece,
        pieces=pieces,
        rows=_evenly(group, chip.ub // (_LIVE_ROWS * piece * FP32)),
        merge_rows=_evenly(group, results),
        score=_score_tile(chip, group, width, block, dtype.itemsize),
        weigh=_weigh_tile(chip, 2 * group, width, block, piece, dtype.itemsize),
        together=max(1, min(piece // block, _l1_tokens(chip, width, dtype.itemsize) // block)),
        paged=paged_block is not None,
        masked=masked,
        dtype=DTYPES[dtype],
    )


def _piece(chip: Chip, pairs: int, capacity: int) -> int:
    """Tokens of a piece: the pieces of all pairs of a sequence and a kv head are about the cube cores."""
    share = max(1, chip.cube_cores // max(1, pairs))
    piece = max(_LEAST_PIECE, token_block(-(-capacity // share), _MOST_PIECE))
    while piece * _MOST_PIECES < capacity:
        piece *= 2
    return piece


def _l1_tokens(chip: Chip, width: int, itemsize: int) -> int:
    """Tokens of a cache in half of L1."""
    return chip.l1 // 2 // (round_up(width, _UNIT) * itemsize)


def _most_block(chip: Chip, group: int, width: int, itemsize: int) -> int:
    """Most tokens that one product reads at once: scores in L0C, the thinnest slice of keys in L0, keys in L1."""
    scores = chip.l0c // (_cube_rows(group) * FP32)
    slices = chip.l0b // 2 // (_UNIT * itemsize)
    return power_below(min(scores, slices, _l1_tokens(chip, width, itemsize)))


def _cube_rows(rows: int) -> int:
    return min(round_up(rows, _UNIT), 128)


def _score_tile(chip: Chip, group: int, width: int, block: int, itemsize: int) -> CubeTile:
    """Tiles of [group, head_dim] @ [head_dim, block]: head_dim whole in L1."""
    m, depth = _cube_rows(group), round_up(width, _UNIT)
    return CubeTile(m, block, _slice(chip, depth, max(m, block), itemsize), depth, depth)


def _weigh_tile(chip: Chip, rows: int, width: int, block: int, piece: int, itemsize: int) -> CubeTile:
    """Tiles of [rows, piece] @ [piece, head_dim]: weights at once where a quarter of L1 holds them."""
    m, n = _cube_rows(rows), round_up(width, _UNIT)
    whole = m * piece * itemsize <= chip.l1 // 4
    return CubeTile(m, n, _slice(chip, block, max(m, n), itemsize), piece if whole else block, block)


def _slice(chip: Chip, depth: int, widest: int, itemsize: int) -> int:
    """The largest part of k whose slices of both operands fit half of L0."""
    fitting = chip.l0b // 2 // (widest * itemsize)
    return max(part for part in range(_UNIT, depth + 1, _UNIT) if depth % part == 0 and part <= max(fitting, _UNIT))


def _evenly(rows: int, fitting: int) -> int:
    """Rows of a tile when all are spread over as few tiles as fit."""
    return -(-rows // -(-rows // max(1, fitting)))


ATTENTION = PyptoKernel(_limits, _launch, spared=_SPARED, rounds_alike=False)
PAGED_ATTENTION = PyptoKernel(_paged_limits, _paged_launch, spared=_SPARED, rounds_alike=False)
