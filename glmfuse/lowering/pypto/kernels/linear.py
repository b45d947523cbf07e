"""A linear layer, product and bias summed in fp32 and rounded once."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block
from glmfuse.lowering.pypto.tiling import CubeTile


def build(hidden: int, out: int, block: int, rows: int, width: int, cube: CubeTile, has_bias: bool, dtype: str) -> Any:
    """The kernel of `linear`: x [tokens, hidden], w [out, hidden], bias [1, out] -> y [tokens, out].

    block: tokens of a round. rows, width: the vector tile of the bias.
    """
    element = getattr(pypto, dtype)

    if has_bias:

        @pypto.frontend.jit()
        def linear(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            bias: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_cube_tile_shapes(*cube.arguments())
                product = project(at.of(x, hidden), w, pypto.DT_FP32)
                pypto.set_vec_tile_shapes(rows, width)
                at.put(pypto.cast(pypto.add(at.cut(product, (0, out)), at.spread(bias, out)), element), y, 0)

    else:

        @pypto.frontend.jit()
        def linear(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_cube_tile_shapes(*cube.arguments())
                at.put(project(at.of(x, hidden), w, element), y, 0)

    return linear


def project(x: Any, w: Any, dtype: Any) -> Any:
    """x wᵀ, summed in fp32 whatever is stored."""
    return pypto.matmul(x, w, dtype, b_trans=True)
