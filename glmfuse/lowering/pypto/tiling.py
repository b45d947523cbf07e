"""From shapes to tiles: functions of a chip, none of them knows a model."""

from __future__ import annotations

from dataclasses import dataclass

from glmfuse.lowering.pypto.chip import Chip

FP32 = 4


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


@dataclass(frozen=True, slots=True)
class CubeTile:
    """Tiles of a matrix product, [in L0, in L1] for each axis, as `set_cube_tile_shapes` takes them."""

    m: tuple[int, int]
    k: tuple[int, int]
    n: tuple[int, int]


def cube_tile(chip: Chip, m: int, k: int, n: int, itemsize: int, l1: int | None = None) -> CubeTile:
    """Tiles of [m, k] @ [k, n]: one wave over the cube cores, and as few copies into L1 as fit.

    l1: bytes to use of it; half leaves room for double buffering on a chip, which the simulator does not
    model: there the whole is fastest, since each copy costs a fixed 0.78 us. What does not fit spills
    silently, so nothing here exceeds it.
    """
    unit = 32 if itemsize == 1 else 16
    m_tile = min(round_up(m, 16), 128)
    columns = -(-n // max(1, chip.cube_cores // -(-m // m_tile)))
    n_tile = min(round_up(columns, unit), 256, chip.l0c // (FP32 * m_tile) // unit * unit, round_up(n, unit))
    depth = round_up(k, unit)
    rows = round_up(m_tile, unit) + n_tile
    k_l1 = _largest_part(depth, unit, (chip.l1 if l1 is None else l1) // (rows * itemsize))
    k_l0 = _largest_part(k_l1, unit, chip.l0b // 2 // (max(m_tile, n_tile) * itemsize))
    return CubeTile((m_tile, m_tile), (k_l0, k_l1), (n_tile, n_tile))


def _largest_part(whole: int, unit: int, limit: int) -> int:
    """The largest divisor of `whole` that is a multiple of `unit` and at most `limit`; the unit if there is none."""
    return max((part for part in range(unit, whole + 1, unit) if whole % part == 0 and part <= limit), default=unit)
