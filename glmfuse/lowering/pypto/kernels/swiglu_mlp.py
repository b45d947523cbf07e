"""Gate and up projections, SwiGLU, down projection, in one launch."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.swiglu import activated, halves
from glmfuse.lowering.pypto.kernels.vector import Block
from glmfuse.lowering.pypto.tiling import CubeTile


def build(
    hidden: int, inter: int, out: int, block: int, rows: int, width: int, wide: CubeTile, narrow: CubeTile,
    merged: bool, dtype: str,
) -> Any:  # fmt: skip
    """The kernel of `swiglu_mlp`: x [tokens, hidden], weights [out, in] -> y [tokens, out].

    merged: gate and up are the halves of one matrix [2 * inter, hidden]. block: tokens of a round. rows,
    width: vector tile of the activation. wide, narrow: cube tiles of the projections up and down.
    """
    element = getattr(pypto, dtype)

    def body(at: Block, x: Any, weights: list[Any], down: Any, y: Any) -> None:
        pypto.set_cube_tile_shapes(*wide.arguments())
        products = [pypto.matmul(at.of(x, hidden), weight, element, b_trans=True) for weight in weights]
        gate, up = halves(at, products[0], inter) if merged else products
        pypto.set_vec_tile_shapes(rows, width)
        active = activated(gate, up, element)
        pypto.set_cube_tile_shapes(*narrow.arguments())
        at.put(pypto.matmul(active, down, element, b_trans=True), y, 0)

    if merged:

        @pypto.frontend.jit()
        def swiglu_mlp(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w_gate: pypto.Tensor([], element),
            w_down: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                body(Block(block, i, tokens), x, [w_gate], w_down, y)

    else:

        @pypto.frontend.jit()
        def swiglu_mlp(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w_gate: pypto.Tensor([], element),
            w_up: pypto.Tensor([], element),
            w_down: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                body(Block(block, i, tokens), x, [w_gate, w_up], w_down, y)

    return swiglu_mlp
