"""The router: logits in fp32, then the choice of experts, in one launch."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.route_topk import SMALLEST, Choice
from glmfuse.lowering.pypto.kernels.vector import Block, widened
from glmfuse.lowering.pypto.tiling import CubeTile, round_up


def build(
    hidden: int, experts: int, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float,
    block: int, rows: int, x_rows: int, width: int, cube: CubeTile, x_dtype: str, w_dtype: str,
) -> Any:  # fmt: skip
    """The kernel of `gate_topk`.

    x [tokens, hidden], w [experts, hidden], bias [1, experts] fp32 -> weights [tokens, top_k] fp32, ids
    [tokens, top_k] int64. A product of bf16 or fp16 operands is exact in fp32, so where both are stored
    alike the matrix product reads them as they are: the sum is the one of the pattern, which casts both
    first. Where w is fp32 and x is not, x is cast in a stage of its own. block: tokens of a round. rows,
    and x_rows with width: the vector tiles of scores and of that cast.
    """
    x_element, w_element = getattr(pypto, x_dtype), getattr(pypto, w_dtype)
    choice = Choice(experts, top_k, n_group, topk_group, renormalize, scale, rows)

    def project(at: Block, x: Any, w: Any) -> Any:
        """The logits: the products of slices along hidden, summed."""
        depth = hidden // cube.slices
        left = at.of(x, hidden)
        if x_dtype != w_dtype:
            pypto.set_vec_tile_shapes(x_rows, width)
            left = widened(left)
        pypto.set_cube_tile_shapes(*cube.arguments())
        if cube.slices == 1:
            return pypto.matmul(left, w, pypto.DT_FP32, b_trans=True)
        products = pypto.tensor([cube.slices * block, experts], pypto.DT_FP32, "products")
        for index in range(cube.slices):
            part = at.cut(left, (index * depth, depth)) if x_dtype != w_dtype else slice_of(at, x, index * depth, depth)
            right = pypto.view(w, [experts, depth], [0, index * depth])
            pypto.assemble(pypto.matmul(part, right, pypto.DT_FP32, b_trans=True), [index * block, 0], products)
        stacked = pypto.reshape(products, [cube.slices, block, experts], inplace=True)
        pypto.set_vec_tile_shapes(cube.slices, rows, round_up(experts, SMALLEST))
        valid = [cube.slices, *at.sizes(experts)]  # without it the last passes take the sum's rows for all
        layers = pypto.view(stacked, [cube.slices, block, experts], [0, 0, 0], valid_shape=valid)
        return at.cut(pypto.sum(layers, 0), (0, experts))

    def slice_of(at: Block, x: Any, start: int, depth: int) -> Any:
        return pypto.view(x, [block, depth], [at.start, start], valid_shape=at.sizes(depth))

    @pypto.frontend.jit()
    def gate_topk(
        x: pypto.Tensor([pypto.DYNAMIC, ...], x_element),
        w: pypto.Tensor([], w_element),
        bias: pypto.Tensor([], pypto.DT_FP32),
        weights: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ids: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT64),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            at = Block(block, i, tokens)
            choice.choose(at, project(at, x, w), bias, weights, ids)

    return gate_topk
