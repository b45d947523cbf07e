"""SwiGLU: silu(gate) * up, both products rounded."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, rounded, scope, widened


def build(inter: int, block: int, rows: int, width: int, merged: bool, dtype: str) -> Any:
    """The kernel of `swiglu`: gate, up [tokens, inter] -> y; merged: gate [tokens, 2 * inter] holds both.

    block: tokens of a round. rows, width: the vector tile.
    """
    element = getattr(pypto, dtype)

    if merged:

        @pypto.frontend.jit()
        def swiglu(
            both: pypto.Tensor([pypto.DYNAMIC, ...], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = both.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                gate, up = halves(at, at.of(both, 2 * inter), inter)
                at.put(activated(gate, up, element), y, 0)
                scope(-1)

    else:

        @pypto.frontend.jit()
        def swiglu(
            gate: pypto.Tensor([pypto.DYNAMIC, ...], element),
            up: pypto.Tensor([pypto.DYNAMIC, ...], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = gate.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                at.put(activated(at.of(gate, inter), at.of(up, inter), element), y, 0)
                scope(-1)

    return swiglu


def halves(at: Block, both: Any, inter: int) -> list[Any]:
    """Gate and up of one value [size, 2 * inter]."""
    return [at.cut(both, (start, inter)) for start in (0, inter)]


def activated(gate: Any, up: Any, element: Any) -> Any:
    """silu(gate) * up, each rounded as torch rounds them."""
    wide = widened(gate)
    silu = pypto.div(wide, pypto.add(pypto.exp(pypto.mul(wide, -1.0)), 1.0))
    return pypto.cast(pypto.mul(rounded(silu, element), widened(up)), element)
