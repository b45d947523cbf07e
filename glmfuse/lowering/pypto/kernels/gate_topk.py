"""The router: logits in fp32, then the choice of experts, in one launch."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.gate import Gate
from glmfuse.lowering.pypto.kernels.route_topk import SMALLEST, Choice
from glmfuse.lowering.pypto.kernels.vector import Block, widened
from glmfuse.lowering.pypto.tiling import round_up


def build(gate: Gate) -> Any:
    """The kernel of `gate_topk`.

    x [tokens, hidden], w [experts, hidden], bias [1, experts] fp32 -> weights [tokens, top_k] fp32, ids
    [tokens, top_k] int64.
    """
    x_element, w_element = getattr(pypto, gate.x_dtype), getattr(pypto, gate.w_dtype)

    @pypto.frontend.jit()
    def gate_topk(
        x: pypto.Tensor([pypto.DYNAMIC, ...], x_element),
        w: pypto.Tensor([], w_element),
        bias: pypto.Tensor([], pypto.DT_FP32),
        weights: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ids: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT64),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + gate.block - 1) // gate.block, name="T", idx_name="i"):
            at = Block(gate.block, i, tokens)
            choice_of(gate).choose(at, Router(gate).project(at, x, w), bias, weights, ids)

    return gate_topk


def choice_of(gate: Gate) -> Choice:
    """How it chooses experts from logits."""
    return Choice(
        gate.experts, gate.top_k, gate.n_group, gate.topk_group, gate.renormalize, gate.scale, gate.rows
    )  # fmt: skip


class Router:
    """The logits of one round.

    A product of bf16 or fp16 operands is exact in fp32, so where both are stored alike the matrix product reads them
    as they are: the sum is the one of the pattern, which casts both first. Where w is fp32 and x is not, x is cast in
    a stage of its own, in pieces: no slice of the product waits for all of x.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def project(self, at: Block, x: Any, w: Any) -> Any:
        """[size, experts] fp32: the products of slices along hidden, summed."""
        gate, cube, block, experts = self.gate, self.gate.cube, self.gate.block, self.gate.experts
        depth = gate.hidden // cube.slices
        lefts = self.slices_of(at, x, depth)
        pypto.set_cube_tile_shapes(*cube.arguments())
        if cube.slices == 1:
            return pypto.matmul(lefts[0], w, pypto.DT_FP32, b_trans=True)
        products = pypto.tensor([cube.slices * block, experts], pypto.DT_FP32, "products")
        for index in range(cube.slices):
            right = pypto.view(w, [experts, depth], [0, index * depth])
            product = pypto.matmul(lefts[index], right, pypto.DT_FP32, b_trans=True)
            pypto.assemble(product, [index * block, 0], products)
        stacked = pypto.reshape(products, [cube.slices, block, experts], inplace=True)
        pypto.set_vec_tile_shapes(cube.slices, gate.rows, round_up(experts, SMALLEST))
        valid = [cube.slices, *at.sizes(experts)]  # without it the last passes take the sum's rows for all
        layers = pypto.view(stacked, [cube.slices, block, experts], [0, 0, 0], valid_shape=valid)
        return at.cut(pypto.sum(layers, 0), (0, experts))

    def slices_of(self, at: Block, x: Any, depth: int) -> list[Any]:
        """This round's rows as w is stored, `depth` channels each."""
        if self.gate.x_dtype == self.gate.w_dtype:
            return [self.channels(at, x, start, depth) for start in range(0, self.gate.hidden, depth)]
        slices = []
        pypto.set_vec_tile_shapes(self.gate.x_rows, self.gate.width)
        for start in range(0, self.gate.hidden, self.gate.cast):
            wide = widened(self.channels(at, x, start, self.gate.cast))
            slices += [at.cut(wide, (inside, depth)) for inside in range(0, self.gate.cast, depth)]
        return slices

    def channels(self, at: Block, x: Any, start: int, count: int) -> Any:
        """Some channels of this round's rows, as they are stored."""
        return pypto.view(x, [self.gate.block, count], [at.start, start], valid_shape=at.sizes(count))
