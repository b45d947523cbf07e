"""Rotary embedding over the first channels of each head, every product and the sum rounded."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from collections.abc import Iterator
from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, rounded, scope, widened


def build(heads: int, head_dim: int, rotary: int, block: int, rows: int, dtype: str) -> Any:
    """The kernel of `rotary`: x [tokens, heads, head_dim], cos, sin [tokens, 1, rotary] -> y like x.

    block: tokens of a round. rows: tokens of a vector tile.
    """
    element = getattr(pypto, dtype)

    def body(at: Block, x: Any, cos: Any, sin: Any, y: Any) -> None:
        angles = [widened(at.of(table, 1, rotary)) for table in (cos, sin)]
        value = widened(at.of(x, heads, head_dim))
        for channel, _, piece in turned(at, value, heads, head_dim, angles, rotary, element):
            at.put(pypto.cast(piece, element), y, 0, channel)

    @pypto.frontend.jit()
    def rotary_embedding(
        x: pypto.Tensor([pypto.DYNAMIC, ...], element),
        cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
        sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
        y: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            at = Block(block, i, tokens)
            pypto.set_vec_tile_shapes(rows, heads, head_dim)
            scope(1)
            body(at, x, cos, sin, y)
            scope(-1)

    return rotary_embedding


def turned(
    at: Block, value: Any, heads: int, head_dim: int, angles: list[Any], rotary: int, element: Any
) -> Iterator[tuple[int, int, Any]]:
    """Pieces (channel, channels, value) of the rotated heads: by halves, then what rotary leaves as it is.

    value [size, heads, head_dim] fp32; angles: cos and sin [size, 1, rotary] fp32.
    """
    half = rotary // 2
    everyone = (0, heads)
    first, second = (at.cut(value, everyone, (start, half)) for start in (0, half))

    def product(part: Any, table: Any, start: int) -> Any:
        return rounded(pypto.mul(part, at.cut(table, (0, 1), (start, half))), element)

    cos, sin = angles
    yield 0, half, pypto.sub(product(first, cos, 0), product(second, sin, 0))
    yield half, half, pypto.add(product(second, cos, half), product(first, sin, half))
    if rotary < head_dim:
        yield rotary, head_dim - rotary, at.cut(value, everyone, (rotary, head_dim - rotary))
