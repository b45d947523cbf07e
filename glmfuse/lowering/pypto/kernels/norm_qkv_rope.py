"""The front of a decoder layer in one launch: three stages, vector, cube, vector."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.front import Front
from glmfuse.lowering.pypto.kernels.rms_norm import add, normalise
from glmfuse.lowering.pypto.kernels.rotary import turned
from glmfuse.lowering.pypto.kernels.vector import Block, rounded, scope, widened
from glmfuse.lowering.pypto.tiling import round_up


def build(front: Front) -> Any:
    """The kernel of `norm_qkv_rope`.

    x, residual [tokens, hidden]; gamma [1, hidden]; weights [out, in] and biases [1, out], where merged all
    rows in the first; g_q, g_k [1, 1, head_dim], the weights of the heads' norms; cos, sin
    [tokens, 1, rotary] -> q [tokens, heads, head_dim], k, v, and with a residual the sum. What a variant does
    not have is passed as any small tensor and not read.
    """
    element = getattr(pypto, front.dtype)
    if front.has_residual:

        @pypto.frontend.jit()
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], element),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            b_q: pypto.Tensor([], element),
            b_k: pypto.Tensor([], element),
            b_v: pypto.Tensor([], element),
            g_q: pypto.Tensor([], element),
            g_k: pypto.Tensor([], element),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            total: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                at = Round(front, Block(front.block, i, tokens))
                products = at.project(at.norm(x, residual, gamma, total), [w_q, w_k, w_v], [b_q, b_k, b_v])
                at.heads(products, [g_q, g_k], cos, sin, [q, k, v])

    else:

        @pypto.frontend.jit()
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], element),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            b_q: pypto.Tensor([], element),
            b_k: pypto.Tensor([], element),
            b_v: pypto.Tensor([], element),
            g_q: pypto.Tensor([], element),
            g_k: pypto.Tensor([], element),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                at = Round(front, Block(front.block, i, tokens))
                products = at.project(at.norm(x, None, gamma, None), [w_q, w_k, w_v], [b_q, b_k, b_v])
                at.heads(products, [g_q, g_k], cos, sin, [q, k, v])

    return norm_qkv_rope


class Round:
    """One round of the loop, for one block of the tokens."""

    def __init__(self, front: Front, at: Block) -> None:
        self.front = front
        self.at = at
        self.element = getattr(pypto, front.dtype)

    def norm(self, x: Any, residual: Any, gamma: Any, total: Any) -> Any:
        """The residual sum, stored, and its RMSNorm: one task for each vector tile."""
        front, at = self.front, self.at
        pypto.set_vec_tile_shapes(front.rows, front.width)
        scope(1)
        part = at.of(x, front.hidden)
        if residual is not None:
            part = add(part, at.of(residual, front.hidden), self.element)
            at.put(part, total, 0)
        hidden = normalise(part, at.spread(gamma, front.hidden), front.hidden, front.eps, self.element)
        scope(-1)
        return hidden

    def project(self, hidden: Any, weights: list[Any], biases: list[Any]) -> Any:
        """All heads, fp32, in as many layers as have to be summed.

        [layers, block, heads, head_dim]: one for each slice of hidden, and the bias as the last. Adding the
        bias in that sum saves a stage; a sum of one layer has no such dimension.
        """
        front, cube = self.front, self.front.cube
        width = front.all_heads * front.head_dim
        pypto.set_cube_tile_shapes(*cube.arguments())
        products = pypto.tensor([front.layers * front.block, width], pypto.DT_FP32, "products")
        for first, count, weight in self.parts(weights):
            for index in range(cube.slices):
                left, right = self.slices(hidden, weight, count, index)
                product = pypto.matmul(left, right, pypto.DT_FP32, b_trans=True)
                pypto.assemble(product, [index * front.block, first * front.head_dim], products)
        if front.has_bias:
            for first, count, bias in self.parts(biases):
                pypto.set_vec_tile_shapes(front.bias_rows, round_up(count * front.head_dim, 16))
                spread = widened(pypto.expand_clone(bias, [front.block, count * front.head_dim]))
                pypto.assemble(spread, [cube.slices * front.block, first * front.head_dim], products)
        shape = [front.all_heads, front.head_dim]
        if front.layers > 1:
            pypto.set_vec_tile_shapes(front.layers, front.head_rows, *shape)
            return pypto.reshape(products, [front.layers, front.block, *shape], inplace=True)
        pypto.set_vec_tile_shapes(front.head_rows, *shape)
        return pypto.reshape(products, [front.block, *shape], valid_shape=self.at.sizes(*shape), inplace=True)

    def slices(self, hidden: Any, weight: Any, heads: int, index: int) -> tuple[Any, Any]:
        """Both operands' part `index` along hidden."""
        front = self.front
        if front.cube.slices == 1:
            return hidden, weight
        depth = front.hidden // front.cube.slices
        rows = pypto.view(weight, [heads * front.head_dim, depth], [0, index * depth])
        return self.at.cut(hidden, (index * depth, depth)), rows

    def parts(self, weights: list[Any]) -> list[tuple[int, int, Any]]:
        """(first head, heads, weight or bias) of each product."""
        front = self.front
        if front.merged:
            return [(0, front.all_heads, weights[0])]
        queries, keys = front.heads, front.kv_heads
        return [(0, queries, weights[0]), (queries, keys, weights[1]), (queries + keys, keys, weights[2])]

    def heads(self, products: Any, gains: Any, cos: Any, sin: Any, outputs: list[Any]) -> None:
        """Queries and keys together, since they are treated alike; then values."""
        front = self.front
        turning = front.heads + front.kv_heads
        spread = self.spread(gains) if front.has_qk_norm else None
        scope(2)
        value = self.sum_of(products, 0, turning)
        if front.has_qk_norm:
            value = widened(normalise(value, spread, front.head_dim, front.eps, self.element))
        self.rotate(value, turning, cos, sin, outputs)
        scope(-1)
        scope(3)
        value = pypto.cast(self.sum_of(products, turning, front.kv_heads), self.element)
        self.at.put(value, outputs[2], 0, 0)
        scope(-1)

    def spread(self, gains: list[Any]) -> Any:
        """The norms' weights over their heads, fp32 [1, heads + kv_heads, head_dim], made beside the first stage."""
        front = self.front
        table = pypto.tensor([1, front.heads + front.kv_heads, front.head_dim], pypto.DT_FP32, "gains")
        for first, count, gain in ((0, front.heads, gains[0]), (front.heads, front.kv_heads, gains[1])):
            pypto.set_vec_tile_shapes(1, count, front.head_dim)
            spread = pypto.expand_clone(gain, [1, count, front.head_dim])
            pypto.assemble(widened(spread), [0, first, 0], table)
        return table

    def sum_of(self, products: Any, first: int, count: int) -> Any:
        """Some heads of the projections, summed over the layers, as fp32 rounded to the storage dtype."""
        front, at = self.front, self.at
        shape = [count, front.head_dim]
        if front.layers > 1:
            pypto.set_vec_tile_shapes(front.layers, front.head_rows, *shape)
            valid = [front.layers, *at.sizes(*shape)]  # without it the last passes take the sum's rows for all
            layers = pypto.view(products, [front.layers, front.block, *shape], [0, 0, first, 0], valid_shape=valid)
            value = at.cut(pypto.sum(layers, 0), (0, count), (0, front.head_dim))
            pypto.set_vec_tile_shapes(front.head_rows, *shape)
        else:
            pypto.set_vec_tile_shapes(front.head_rows, *shape)
            value = at.cut(products, (first, count), (0, front.head_dim))
        return rounded(value, self.element)

    def rotate(self, value: Any, count: int, cos: Any, sin: Any, outputs: list[Any]) -> None:
        """Turn the first channels, pass the rest; store q and k."""
        front, at = self.front, self.at
        angles = [widened(at.of(table, 1, front.rotary)) for table in (cos, sin)]
        for channel, size, piece in turned(at, value, count, front.head_dim, angles, front.rotary, self.element):
            for first, heads, output in ((0, front.heads, outputs[0]), (front.heads, front.kv_heads, outputs[1])):
                part = at.cut(piece, (first, heads), (0, size))
                at.put(pypto.cast(part, self.element), output, 0, channel)
