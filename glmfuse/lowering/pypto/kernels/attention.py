"""Attention of one query for each sequence over its cache, in independent pieces that a last task merges."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.decode import Decode

_MASKED = -1e30
"""The score of a masked token, finite."""

_LEAST, _TINY = -1e29, 1e-30
"""The least maximum and sum of a piece: where all is masked, weights are then 0, as torch's, and not NaN."""


def build(plan: Decode) -> Any:
    """The kernel of `attention` and `paged_attention`.

    q [sequences * heads, head_dim]; a paged cache [tokens, kv_heads * head_dim] with table [sequences,
    blocks] int32 and lengths [sequences] int32, or a contiguous one [sequences * kv_heads * length,
    head_dim] with mask [sequences, length] bool, if any -> out [sequences * heads, head_dim].
    """
    element = getattr(pypto, plan.dtype)
    # With the default, few sequences are scheduled at once.
    runtime = {"stitch_function_max_num": 128}
    passes = {"cube_l1_reuse_setting": {-1: plan.together}}

    if plan.paged:

        @pypto.frontend.jit(runtime_options=runtime, pass_options=passes)
        def attention(
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            table: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT32),
            lengths: pypto.Tensor([pypto.DYNAMIC], pypto.DT_INT32),
            out: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            for i in pypto.loop(lengths.shape[0] * plan.kv_heads, name="I", idx_name="i"):
                length = lengths[i // plan.kv_heads]
                pieces = (length + plan.piece - 1) // plan.piece
                at = Sequence(plan, i, length, table, None)
                for j in pypto.loop(pieces, name="J", idx_name="j"):
                    at.attend(q, k, v, j)
                for _ in pypto.loop(pieces.min(1), name="M", idx_name="one"):
                    at.merge(pieces, out)
                for _ in pypto.loop(1 - pieces.min(1), name="E", idx_name="none"):
                    at.clear(out)

    elif plan.masked:

        @pypto.frontend.jit(runtime_options=runtime, pass_options=passes)
        def attention(
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            mask: pypto.Tensor([pypto.DYNAMIC, pypto.DYNAMIC], pypto.DT_BOOL),
            out: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            count = q.shape[0] // plan.group
            length = k.shape[0] // count
            pieces = (length + plan.piece - 1) // plan.piece
            for i in pypto.loop(count, name="I", idx_name="i"):
                at = Sequence(plan, i, length, None, mask)
                for j in pypto.loop(pieces, name="J", idx_name="j"):
                    at.attend(q, k, v, j)
                for _ in pypto.loop(1, name="M", idx_name="one"):
                    at.merge(pieces, out)

    else:

        @pypto.frontend.jit(runtime_options=runtime, pass_options=passes)
        def attention(
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            out: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            count = q.shape[0] // plan.group
            length = k.shape[0] // count
            pieces = (length + plan.piece - 1) // plan.piece
            for i in pypto.loop(count, name="I", idx_name="i"):
                at = Sequence(plan, i, length, None, None)
                for j in pypto.loop(pieces, name="J", idx_name="j"):
                    at.attend(q, k, v, j)
                for _ in pypto.loop(1, name="M", idx_name="one"):
                    at.merge(pieces, out)

    return attention


class Sequence:
    """Pair `i` of a sequence and a kv head, with the pieces of its result.

    length: cached tokens of the sequence. table: of a paged cache. mask: of a contiguous one, if any.
    """

    def __init__(self, plan: Decode, i: Any, length: Any, table: Any, mask: Any) -> None:
        self.plan, self.i, self.length, self.table, self.mask = plan, i, length, table, mask
        self.element = getattr(pypto, plan.dtype)
        self.results = pypto.tensor([plan.pieces * 2 * plan.group, plan.head_dim], pypto.DT_FP32, "results")
        self.logs = pypto.tensor([plan.pieces * plan.group, 1], pypto.DT_FP32, "logs")

    def attend(self, q: Any, k: Any, v: Any, j: Any) -> None:
        """Softmax and weighted values of piece j, and the logarithm of its sum of exponentials."""
        plan = self.plan
        left = (self.length - j * plan.piece).min(plan.piece)
        queries = pypto.view(q, [plan.group, plan.head_dim], [self.i * plan.group, 0])
        pypto.set_cube_tile_shapes(*plan.score.arguments())
        scores = pypto.matmul(queries, self.cached(k, j, left), pypto.DT_FP32, b_trans=True)
        weights, log = self.softmax(scores, j, left)
        pypto.set_cube_tile_shapes(*plan.weigh.arguments())
        result = pypto.matmul(weights, self.cached(v, j, left), pypto.DT_FP32)
        pypto.assemble(result, [j * 2 * plan.group, 0], self.results)
        pypto.assemble(log, [j * plan.group, 0], self.logs)

    def cached(self, cache: Any, j: Any, left: Any) -> Any:
        """Piece j of keys or values, [piece, head_dim], of which `left` tokens are there."""
        plan = self.plan
        width = plan.head_dim
        if plan.piece == plan.block and not plan.paged:
            return self.block_of(cache, j * plan.piece, left)
        gathered = pypto.tensor([plan.piece, width], self.element, "gathered")
        for first in range(0, plan.piece, plan.block):
            pypto.assemble(self.block_of(cache, j * plan.piece + first, left - first), [first, 0], gathered)
        return pypto.view(gathered, [plan.piece, width], [0, 0], valid_shape=[left, width])

    def block_of(self, cache: Any, token: Any, left: Any) -> Any:
        """The block of the cache from a token on, `left` tokens before the end.

        Past the end comes the last block or token again: what the table holds there may be anything, and
        there may be no more memory.
        """
        plan = self.plan
        block, width = plan.block, plan.head_dim
        last = self.length - 1
        if plan.paged:
            sequence, head = self.i // plan.kv_heads, self.i % plan.kv_heads
            start = self.table[sequence, token.min(last) // block] * block
            return pypto.view(cache, [block, width], [start, head * width])
        start = self.i * self.length + token.min(last)
        return pypto.view(cache, [block, width], [start, 0], valid_shape=[left.min(block).max(1), width])

    def softmax(self, scores: Any, j: Any, left: Any) -> tuple[Any, Any]:
        """Weights [2 * group, piece] and the logarithm of their sum [group, 1].

        Weights are two roundings to the storage dtype one below the other, of the weight and of what the
        first leaves: the product with the values reads these once either way, and nothing is lost.
        """
        plan = self.plan
        group, piece = plan.group, plan.piece
        pypto.set_vec_tile_shapes(plan.rows, piece)
        scores = pypto.mul(pypto.view(scores, [group, piece], [0, 0], valid_shape=[group, left]), plan.scale)
        if plan.masked:
            scores = self.masked(scores, j, left)
        most = pypto.amax(scores, -1, True)
        if plan.masked:
            most = pypto.maximum(most, _LEAST)
        exponentials = pypto.exp(pypto.sub(scores, most))
        total = pypto.sum(exponentials, -1, True)
        if plan.masked:
            total = pypto.maximum(total, _TINY)
        exact = pypto.div(exponentials, total)
        rounded = pypto.cast(exact, self.element)
        rest = pypto.cast(pypto.sub(exact, pypto.cast(rounded, pypto.DT_FP32)), self.element)
        weights = pypto.tensor([2 * group, piece], self.element, "weights")
        pypto.assemble(rounded, [0, 0], weights)
        pypto.assemble(rest, [group, 0], weights)
        log = pypto.add(most, pypto.log(total))
        return pypto.view(weights, [2 * group, piece], [0, 0], valid_shape=[2 * group, left]), log

    def masked(self, scores: Any, j: Any, left: Any) -> Any:
        """The scores, those of masked tokens replaced."""
        plan = self.plan
        row = pypto.view(self.mask, [1, plan.piece], [self.i // plan.kv_heads, j * plan.piece], valid_shape=[1, left])
        return pypto.where(row, scores, _MASKED)

    def merge(self, pieces: Any, out: Any) -> None:
        """The mean of the pieces by their sums of exponentials."""
        plan = self.plan
        group, width, most = plan.group, plan.head_dim, plan.pieces
        pypto.set_vec_tile_shapes(most, 2, plan.merge_rows, width)
        results = pypto.reshape(self.results, [most, 2, group, width], inplace=True)
        results = pypto.view(results, [most, 2, group, width], [0, 0, 0, 0], valid_shape=[pieces, 2, group, width])
        results = pypto.sum(results, 1)
        pypto.set_vec_tile_shapes(most, plan.merge_rows, width)
        logs = pypto.reshape(self.logs, [most, group, 1], inplace=True)
        logs = pypto.view(logs, [most, group, 1], [0, 0, 0], valid_shape=[pieces, group, 1])
        weights = pypto.exp(pypto.sub(logs, pypto.amax(logs, 0, True)))
        result = pypto.sum(pypto.mul(results, weights), 0)
        total = pypto.sum(weights, 0)
        pypto.set_vec_tile_shapes(plan.merge_rows, width)
        pypto.assemble(pypto.cast(pypto.div(result, total), self.element), [self.i * group, 0], out)

    def clear(self, out: Any) -> None:
        """The result of a sequence without tokens: 0, as torch's."""
        plan = self.plan
        pypto.set_vec_tile_shapes(plan.group, plan.head_dim)
        zeros = pypto.full([plan.group, plan.head_dim], 0.0, self.element)
        pypto.assemble(zeros, [self.i * plan.group, 0], out)
