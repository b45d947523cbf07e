"""The front of a decoder layer in one launch: three stages, vector, cube, vector."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.front import Front
from glmfuse.lowering.pypto.kernels.rms_norm import normalise
from glmfuse.lowering.pypto.tiling import round_up


def build(front: Front) -> Any:
    """The kernel of `norm_qkv_rope`.

    x, residual [tokens, hidden]; gamma [1, hidden] fp32; weights [out, in], where merged all rows in the
    first; bias [1, width] fp32 of all three projections; gains [1, heads + kv_heads, head_dim] fp32, the
    norms' weights spread over the heads; cos, sin [tokens, 1, rotary] -> q [tokens, heads, head_dim], k, v,
    and with a residual the sum. What a variant does not have is passed as any small tensor and not read.
    """
    element = getattr(pypto, front.dtype)
    if front.has_residual:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], pypto.DT_FP32),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            bias: pypto.Tensor([], pypto.DT_FP32),
            gains: pypto.Tensor([], pypto.DT_FP32),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            total: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                at = Round(front, i, (tokens - i * front.block).min(front.block))
                hidden = at.add_and_norm(x, residual, gamma, total)
                at.heads(at.project(hidden, [w_q, w_k, w_v], bias), gains, cos, sin, [q, k, v])

    else:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], pypto.DT_FP32),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            bias: pypto.Tensor([], pypto.DT_FP32),
            gains: pypto.Tensor([], pypto.DT_FP32),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                at = Round(front, i, (tokens - i * front.block).min(front.block))
                hidden = at.add_and_norm(x, None, gamma, None)
                at.heads(at.project(hidden, [w_q, w_k, w_v], bias), gains, cos, sin, [q, k, v])

    return norm_qkv_rope


class Round:
    """One round of the loop: block `i` of the tokens, `valid` of which are there."""

    def __init__(self, front: Front, i: Any, valid: Any) -> None:
        self.front = front
        self.start = i * front.block
        self.valid = valid
        self.element = getattr(pypto, front.dtype)

    def add_and_norm(self, x: Any, residual: Any, gamma: Any, total: Any) -> Any:
        """The residual sum, stored, and its RMSNorm: one task for each vector tile."""
        front = self.front
        pypto.set_vec_tile_shapes(front.rows, front.width)
        scope(1)
        part = self.tokens_of(x)
        if residual is not None:
            both = pypto.add(widened(part), widened(self.tokens_of(residual)))
            part = pypto.cast(both, self.element)
            pypto.assemble(part, [self.start, 0], total)
        hidden = normalise(part, gamma, front.hidden, front.eps, self.element)
        scope(-1)
        return hidden

    def tokens_of(self, tensor: Any) -> Any:
        """This block of a [tokens, hidden] tensor."""
        front = self.front
        return pypto.view(tensor, [front.block, front.hidden], [self.start, 0], valid_shape=[self.valid, front.hidden])

    def project(self, hidden: Any, weights: list[Any], bias: Any) -> Any:
        """All heads, fp32, in as many layers as have to be summed.

        [layers, block, heads, head_dim]: one for each slice of hidden, and the bias as the last. Adding the
        bias in that sum saves a stage; a sum of one layer has no such dimension.
        """
        front, cube = self.front, self.front.cube
        width = front.all_heads * front.head_dim
        depth = front.hidden // cube.slices
        pypto.set_cube_tile_shapes(*cube.arguments())
        products = pypto.tensor([front.layers * front.block, width], pypto.DT_FP32, "products")
        for first, count, weight in self.parts(weights):
            for index in range(cube.slices):
                left, right = hidden, weight
                if cube.slices > 1:
                    left = pypto.view(hidden, [front.block, depth], [0, index * depth], valid_shape=[self.valid, depth])
                    right = pypto.view(weight, [count * front.head_dim, depth], [0, index * depth])
                product = pypto.matmul(left, right, pypto.DT_FP32, b_trans=True)
                pypto.assemble(product, [index * front.block, first * front.head_dim], products)
        if front.has_bias:
            pypto.set_vec_tile_shapes(front.bias_rows, round_up(width, 8))
            spread = pypto.expand_clone(bias, [front.block, width])
            pypto.assemble(spread, [cube.slices * front.block, 0], products)
        shape = [front.block, front.all_heads, front.head_dim]
        if front.layers > 1:
            pypto.set_vec_tile_shapes(front.layers, front.head_rows, front.all_heads, front.head_dim)
            return pypto.reshape(products, [front.layers, *shape], inplace=True)
        pypto.set_vec_tile_shapes(front.head_rows, front.all_heads, front.head_dim)
        return pypto.reshape(products, shape, valid_shape=[self.valid, *shape[1:]], inplace=True)

    def parts(self, weights: list[Any]) -> list[tuple[int, int, Any]]:
        """(first head, heads, weight) of each product."""
        front = self.front
        if front.merged:
            return [(0, front.all_heads, weights[0])]
        queries, keys = front.heads, front.kv_heads
        return [(0, queries, weights[0]), (queries, keys, weights[1]), (queries + keys, keys, weights[2])]

    def heads(self, products: Any, gains: Any, cos: Any, sin: Any, outputs: list[Any]) -> None:
        """Queries and keys together, since they are treated alike; then values."""
        front = self.front
        turning = front.heads + front.kv_heads
        scope(2)
        value = self.sum_of(products, 0, turning)
        if front.has_qk_norm:
            value = self.normalised(value, gains)
        self.rotate(value, turning, cos, sin, outputs)
        scope(-1)
        scope(3)
        value = pypto.cast(self.sum_of(products, turning, front.kv_heads), self.element)
        pypto.assemble(value, [self.start, 0, 0], outputs[2])
        scope(-1)

    def sum_of(self, products: Any, first: int, count: int) -> Any:
        """Some heads of the projections, summed over the layers, as fp32 rounded to the storage dtype."""
        front = self.front
        shape = [front.block, count, front.head_dim]
        valid = [self.valid, count, front.head_dim]
        if front.layers > 1:
            pypto.set_vec_tile_shapes(front.layers, front.head_rows, count, front.head_dim)
            layers = pypto.view(products, [front.layers, *shape], [0, 0, first, 0])
            value = pypto.view(pypto.sum(layers, 0), shape, [0, 0, 0], valid_shape=valid)
            pypto.set_vec_tile_shapes(front.head_rows, count, front.head_dim)
        else:
            pypto.set_vec_tile_shapes(front.head_rows, count, front.head_dim)
            value = pypto.view(products, shape, [0, first, 0], valid_shape=valid)
        return self.rounded(value)

    def rounded(self, value: Any) -> Any:
        """Through the storage dtype and back to fp32: where the pattern's operators round."""
        return widened(pypto.cast(value, self.element))

    def normalised(self, value: Any, gains: Any) -> Any:
        """RMSNorm over head_dim."""
        front = self.front
        mean = pypto.sum(pypto.mul(pypto.mul(value, value), 1.0 / front.head_dim), -1, keepdim=True)
        scaled = pypto.div(value, pypto.sqrt(pypto.add(mean, front.eps)))
        return self.rounded(pypto.mul(self.rounded(scaled), gains))

    def rotate(self, value: Any, count: int, cos: Any, sin: Any, outputs: list[Any]) -> None:
        """Turn the first channels by halves, each product and the sum rounded; pass the rest; store q and k."""
        front = self.front
        half = front.rotary // 2
        c, s = self.angles(cos), self.angles(sin)
        a, b = self.cut(value, 0, count, 0, half), self.cut(value, 0, count, half, half)
        low = [
            self.rounded(pypto.mul(a, self.cut(c, 0, 1, 0, half))),
            self.rounded(pypto.mul(b, self.cut(s, 0, 1, 0, half))),
        ]
        high = [
            self.rounded(pypto.mul(b, self.cut(c, 0, 1, half, half))),
            self.rounded(pypto.mul(a, self.cut(s, 0, 1, half, half))),
        ]
        pieces = [(0, half, pypto.sub(*low)), (half, half, pypto.add(*high))]
        if front.rotary < front.head_dim:
            rest = front.head_dim - front.rotary
            pieces.append((front.rotary, rest, self.cut(value, 0, count, front.rotary, rest)))
        for channel, size, piece in pieces:
            for first, heads, output in ((0, front.heads, outputs[0]), (front.heads, front.kv_heads, outputs[1])):
                part = self.cut(piece, first, heads, 0, size)
                pypto.assemble(pypto.cast(part, self.element), [self.start, 0, channel], output)

    def angles(self, table: Any) -> Any:
        """This block of cos or sin, fp32."""
        rotary = self.front.rotary
        return widened(
            pypto.view(table, [self.front.block, 1, rotary], [self.start, 0, 0], valid_shape=[self.valid, 1, rotary])
        )

    def cut(self, value: Any, head: int, heads: int, channel: int, channels: int) -> Any:
        """Some heads and channels of [block, heads, channels]."""
        shape = [self.front.block, heads, channels]
        return pypto.view(value, shape, [0, head, channel], valid_shape=[self.valid, heads, channels])


def widened(value: Any) -> Any:
    """As fp32."""
    return pypto.cast(value, pypto.DT_FP32)


def scope(number: int) -> None:
    """Keep the vector operators that follow in one task for each tile; -1 ends it."""
    pypto.set_pass_options(sg_set_scope=number)
