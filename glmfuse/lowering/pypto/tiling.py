"""From shapes to tiles: functions of a chip, none of them knows a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from glmfuse.lowering.pypto.chip import Chip

FP32 = 4

_DEPTHS = 6
"""How many of the largest tiles of k are tried for each operand."""


def round_up(value: int, unit: int) -> int:
    """The next multiple of `unit`, `value` itself included."""
    return -(-value // unit) * unit


def power_below(value: int) -> int:
    """The largest power of two up to `value`, at least 1."""
    return 1 << (max(value, 1).bit_length() - 1)


def token_block(tokens: int, limit: int = 32) -> int:
    """Tokens of one round of a kernel's loop: a power of two that holds them all, up to `limit`."""
    return min(1 << (max(tokens, 1) - 1).bit_length(), limit)


def tokens_of_round(tokens: int) -> int:
    """Tokens of one round of a kernel with a matrix product: a decode batch at once, or one full m tile."""
    return token_block(tokens) if tokens <= 32 else 128


def tail(chip: Chip, width: int, itemsize: int = 2) -> int:
    """A vector tile's last axis for a width: whole blocks of the unified buffer, more than the width if need be."""
    return round_up(width, chip.tail // itemsize)


def vector_rows(chip: Chip, width: int, block: int, live: int, tiles: int = 1) -> int:
    """Rows of a vector tile: `live` fp32 rows fit the unified buffer, and a block makes `tiles` or more."""
    fitting = power_below(chip.ub // (live * width * FP32))
    return max(1, min(fitting, block // tiles))


def vector_tile(chip: Chip, width: int, block: int, live: int) -> tuple[int, int]:
    """Rows and columns of a tile for operators on single elements: a row too wide for the buffer is cut."""
    most = chip.ub // (live * FP32) // chip.tail * chip.tail
    columns = min(tail(chip, width), most)
    return vector_rows(chip, columns, block, live), columns


@dataclass(frozen=True, slots=True)
class CubeTile:
    """Tiles of a matrix product [m, k] @ [k, n].

    m, n: of the result. k_l0: of k in L0. k_a, k_b: of k in L1, of the left and of the right operand.
    slices: parts of k that are summed afterwards, each by tasks of its own.
    """

    m: int
    n: int
    k_l0: int
    k_a: int
    k_b: int
    slices: int = 1

    def arguments(self) -> tuple[list[int], list[int], list[int]]:
        """As `pypto.set_cube_tile_shapes` takes them."""
        return [self.m, self.m], [self.k_l0, self.k_a, self.k_b], [self.n, self.n]


@cache  # every call of a kernel asks for its tiles
def cube_tile(
    chip: Chip, m: int, k: int, n: int, itemsize: int, slices: int = 1, *, widest: int = 0, whole: bool = False
) -> CubeTile:
    """The tile that the cost model takes least time for, of those that fit the chip's share of L1, L0 and L0C.

    What exceeds L1 does not fail but spills, silently and slowly, so nothing here does. slices: at most so
    many parts of k. widest: at most so many columns, where there is such a bound. whole: only of as many columns as
    divide n, where there are such; then each vector tile of as many waits for one cube task.
    """
    unit = 32 if itemsize == 1 else 16  # of n, too, or PyPTO says that a tile shape was not set
    m_tile = min(round_up(m, 16), 128)
    most = min(round_up(n, unit), chip.l0c // (m_tile * FP32), widest or n + unit)
    widths = range(unit, most + 1, unit)
    tiles = (
        CubeTile(m_tile, n_tile, k_l0, k_a, k_b, part)
        for part in range(1, slices + 1)
        if part == 1 or k % (part * unit) == 0
        for n_tile in ([width for width in widths if n % width == 0] if whole else None) or widths
        for k_l0, k_a, k_b in _depths(chip, round_up(k, unit) // part, unit, m_tile, n_tile, itemsize)
    )
    return min(tiles, key=lambda tile: _cube_cycles(chip, tile, m, k, n, itemsize))


def _depths(
    chip: Chip, depth: int, unit: int, m_tile: int, n_tile: int, itemsize: int
) -> Iterator[tuple[int, int, int]]:
    """The largest few tiles of k for both operands that fit L1 together, and the largest of these for L0."""
    parts = [part for part in range(unit, depth + 1, unit) if depth % part == 0]
    budget = int(chip.l1 * chip.l1_share)
    for k_a in _largest(parts, budget // (m_tile * itemsize)):
        fitting = [k_b for k_b in parts if (k_b * n_tile + k_a * m_tile) * itemsize <= budget and k_a % k_b == 0]
        for k_b in fitting[-_DEPTHS:]:
            small = [p for p in parts if k_b % p == 0 and max(m_tile, n_tile) * p * itemsize <= chip.l0b // 2]
            if small:
                yield small[-1], k_a, k_b


def _largest(parts: list[int], limit: int) -> list[int]:
    """The largest parts of k, or where all of these exceed the limit the largest that do not."""
    return parts[-_DEPTHS:] if parts[-_DEPTHS:][0] < limit else [part for part in parts if part < limit][-_DEPTHS:]


def _cube_cycles(chip: Chip, tile: CubeTile, m: int, k: int, n: int, itemsize: int) -> float:
    """Cycles from the first task's release to the last one's end: releases are serial, and so are copies."""
    depth = k // tile.slices
    tasks = -(-m // tile.m) * -(-n // tile.n) * tile.slices
    waves = -(-tasks // chip.cube_cores)
    copies = -(-depth // tile.k_a) + -(-depth // tile.k_b)
    load = copies * chip.cycles_copy + (tile.m + tile.n) * depth * itemsize * chip.cycles_byte
    last = tile.n * min(tile.k_b, depth) * itemsize * chip.cycles_byte_l0
    return tasks * chip.cycles_release + waves * (load + last)
