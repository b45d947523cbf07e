"""The front of a decoder layer in codes, in one launch: vector (norm, codes), cube, vector (floats, heads)."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.front import QuantFront
from glmfuse.lowering.pypto.kernels.codes import by_factor, by_largest, summed, undone
from glmfuse.lowering.pypto.kernels.rms_norm import add, normalise
from glmfuse.lowering.pypto.kernels.rotary import turned
from glmfuse.lowering.pypto.kernels.vector import Block, rounded, scope, widened


def build(plan: QuantFront) -> Any:
    """The kernel of `norm_qkv_rope_<scheme>`.

    As that of `norm_qkv_rope`, and: factor, offset [1, 1 or hidden]; weights as codes, [out, in] or [in, out]; scales
    s_* [1, heads, head_dim] fp32 and biases b_* of that shape, where merged all heads' in the first. What a variant
    does not have is passed as any small tensor and not read.
    """
    front = plan.front
    element, code, bias = (getattr(pypto, name) for name in (front.dtype, plan.codes, plan.bias_dtype))
    number = getattr(pypto, plan.factor_dtype)

    def body(at: Block, rows: list[Any], weights: list[Any], scales: list[Any], biases: list[Any], gains: list[Any],
             angles: list[Any], outputs: list[Any]) -> None:  # fmt: skip
        layer = Round(plan, at)
        codes, per_token = layer.norm(rows, outputs[3:])
        parts = layer.project(codes, weights)
        for index in range(3):
            layer.heads(index, parts, per_token, scales, biases, gains, angles, outputs[index])

    if front.has_residual:

        @pypto.frontend.jit()
        def norm_qkv_rope_quant(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], element),
            factor: pypto.Tensor([], number),
            offset: pypto.Tensor([], number),
            w_q: pypto.Tensor([], code),
            w_k: pypto.Tensor([], code),
            w_v: pypto.Tensor([], code),
            s_q: pypto.Tensor([], pypto.DT_FP32),
            s_k: pypto.Tensor([], pypto.DT_FP32),
            s_v: pypto.Tensor([], pypto.DT_FP32),
            b_q: pypto.Tensor([], bias),
            b_k: pypto.Tensor([], bias),
            b_v: pypto.Tensor([], bias),
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
                body(
                    Block(front.block, i, tokens), [x, residual, gamma, factor, offset], [w_q, w_k, w_v],
                    [s_q, s_k, s_v], [b_q, b_k, b_v], [g_q, g_k], [cos, sin], [q, k, v, total],
                )  # fmt: skip

    else:

        @pypto.frontend.jit()
        def norm_qkv_rope_quant(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], element),
            factor: pypto.Tensor([], number),
            offset: pypto.Tensor([], number),
            w_q: pypto.Tensor([], code),
            w_k: pypto.Tensor([], code),
            w_v: pypto.Tensor([], code),
            s_q: pypto.Tensor([], pypto.DT_FP32),
            s_k: pypto.Tensor([], pypto.DT_FP32),
            s_v: pypto.Tensor([], pypto.DT_FP32),
            b_q: pypto.Tensor([], bias),
            b_k: pypto.Tensor([], bias),
            b_v: pypto.Tensor([], bias),
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
                body(
                    Block(front.block, i, tokens), [x, None, gamma, factor, offset], [w_q, w_k, w_v],
                    [s_q, s_k, s_v], [b_q, b_k, b_v], [g_q, g_k], [cos, sin], [q, k, v],
                )  # fmt: skip

    return norm_qkv_rope_quant


class Round:
    """One round of the loop, for one block of the tokens."""

    def __init__(self, plan: QuantFront, at: Block) -> None:
        self.plan = plan
        self.front = plan.front
        self.at = at
        self.element = getattr(pypto, plan.front.dtype)

    def norm(self, rows: list[Any], totals: list[Any]) -> tuple[Any, Any]:
        """The residual sum, stored, and its RMSNorm as codes, with the scale of each token: one task for each tile."""
        front, at = self.front, self.at
        x, residual, gamma, factor, offset = rows
        pypto.set_vec_tile_shapes(front.rows, front.width)
        scope(1)
        part = at.of(x, front.hidden)
        if residual is not None:
            part = add(part, at.of(residual, front.hidden), self.element)
            at.put(part, totals[0], 0)
        hidden = normalise(part, at.spread(gamma, front.hidden), front.hidden, front.eps, self.element)
        if self.plan.is_static:
            codes, per_token = by_factor(at, widened(hidden), factor, offset, self.plan.channels), None
        else:
            codes, per_token = by_largest(at, widened(hidden), self.plan.codes)
        scope(-1)
        return codes, None if per_token is None else self.column(per_token)

    def column(self, per_token: Any) -> Any:
        """[size, 1] as [size, 1, 1]; outside of a scope, which would take the product's tasks in."""
        return self.at.cut(pypto.unsqueeze(per_token, -1), (0, 1), (0, 1))

    def project(self, codes: Any, weights: list[Any]) -> list[tuple[Any, int, int]]:
        """For queries, keys and values: the sums of products that have them, the first head there, and how many."""
        front = self.front
        counts = (front.heads, front.kv_heads, front.kv_heads)
        if front.merged:
            sums = self.product(codes, weights[0], front.all_heads)
            firsts = (0, front.heads, front.heads + front.kv_heads)
            return [(sums, first, count) for first, count in zip(firsts, counts, strict=True)]
        return [(self.product(codes, w, count), 0, count) for w, count in zip(weights, counts, strict=True)]

    def product(self, codes: Any, weight: Any, heads: int) -> Any:
        """[block, heads, head_dim]."""
        front = self.front
        pypto.set_cube_tile_shapes(*front.cube.arguments())
        sums = pypto.matmul(codes, weight, summed(self.plan.codes), b_trans=self.plan.held)
        shape = [heads, front.head_dim]
        pypto.set_vec_tile_shapes(front.head_rows, *shape)
        return pypto.reshape(sums, [front.block, *shape], valid_shape=self.at.sizes(*shape), inplace=True)

    def heads(self, index: int, parts: list[tuple[Any, int, int]], per_token: Any, scales: list[Any],
              biases: list[Any], gains: list[Any], angles: list[Any], output: Any) -> None:  # fmt: skip
        """Queries (index 0), keys (1) or values (2): as floats, normalised and turned as they are, stored."""
        front = self.front
        sums, first, count = parts[index]
        own = 0 if front.merged else index
        pypto.set_vec_tile_shapes(front.head_rows, count, front.head_dim)
        scope(2 + index)
        scale = self.of_heads(scales[own], first, count)
        bias = self.of_heads(biases[own], first, count) if front.has_bias else None
        value = self.floats(self.at.cut(sums, (first, count), (0, front.head_dim)), count, per_token, scale, bias)
        if index == 2:
            self.at.put(pypto.cast(value, self.element), output, 0, 0)
        else:
            if front.has_qk_norm:
                value = widened(normalise(value, self.gain(gains[index]), front.head_dim, front.eps, self.element))
            self.turn(value, count, angles, output)
        scope(-1)

    def of_heads(self, table: Any, first: int, count: int) -> Any:
        """Some heads of a table [1, heads, head_dim]."""
        return pypto.view(table, [1, count, self.front.head_dim], [0, first, 0])

    def floats(self, sums: Any, count: int, per_token: Any, scale: Any, bias: Any) -> Any:
        """Sums of products as fp32 rounded to the storage dtype; per_token is spread along one axis, then the other."""
        front, at = self.front, self.at
        if self.plan.is_static and front.has_bias:
            sums = pypto.add(sums, bias)
        if per_token is not None:
            per_token = pypto.expand_clone(per_token, [front.block, count, 1], valid_shape=at.sizes(count, 1))
        value = undone(sums, scale, per_token)
        if front.has_bias and not self.plan.is_static:
            value = pypto.add(value, at.spread(bias, count, front.head_dim))
        return rounded(value, self.element)

    def gain(self, weight: Any) -> Any:
        """A norm's weight [1, 1, head_dim] for every token."""
        return self.at.spread(weight, 1, self.front.head_dim)

    def turn(self, value: Any, count: int, angles: list[Any], output: Any) -> None:
        """Turn the first channels, pass the rest; store."""
        front, at = self.front, self.at
        wide = [widened(at.of(table, 1, front.rotary)) for table in angles]
        for channel, _, piece in turned(at, value, count, front.head_dim, wide, front.rotary, self.element):
            at.put(pypto.cast(piece, self.element), output, 0, channel)
