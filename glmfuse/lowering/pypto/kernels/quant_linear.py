"""A linear layer of int8 rows and weights, its sums made floats and rounded once."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.codes import undone
from glmfuse.lowering.pypto.kernels.vector import Block
from glmfuse.lowering.pypto.tiling import CubeTile


def build(
    inputs: int, out: int, held: bool, block: int, rows: int, cube: CubeTile, per_token: bool, whole: bool,
    bias: bool, dtypes: tuple[str, str, str],
) -> Any:  # fmt: skip
    """The kernel of `quant_linear`.

    x [tokens, inputs] int8, w [out, inputs] or [inputs, out], scale [1, out] fp32, scales [tokens, 1] fp32, added
    [1, out] int32 (whole) and biases [1, out] -> y [tokens, out]. What a variant does not have is passed as any small
    tensor. block: tokens of a round. rows: of a vector tile, which is as wide as a cube tile. dtypes: of y, of
    `added` and of the biases.
    """
    element, whole_element, bias_element = (getattr(pypto, dtype) for dtype in dtypes)

    def body(at: Block, x: Any, w: Any, scale: Any, scales: Any, added: Any, biases: Any, y: Any) -> None:
        pypto.set_cube_tile_shapes(*cube.arguments())
        sums = pypto.matmul(at.of(x, inputs), w, pypto.DT_INT32, b_trans=held)
        pypto.set_vec_tile_shapes(rows, cube.n)
        if whole:
            sums = pypto.add(sums, added)
        value = undone(sums, scale, at.of(scales, 1) if per_token else None)
        if bias:
            value = pypto.add(value, at.spread(biases, out))
        at.put(pypto.cast(value, element), y, 0)

    @pypto.frontend.jit()
    def quant_linear(
        x: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT8),
        w: pypto.Tensor([], pypto.DT_INT8),
        scale: pypto.Tensor([], pypto.DT_FP32),
        scales: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        added: pypto.Tensor([], whole_element),
        biases: pypto.Tensor([], bias_element),
        y: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            body(Block(block, i, tokens), x, w, scale, scales, added, biases, y)

    return quant_linear
