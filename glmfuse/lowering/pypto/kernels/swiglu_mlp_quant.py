"""A feed-forward layer in codes, in one launch: (codes of x,) up, SwiGLU and its codes, down, floats."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.feed_forward import FeedForward
from glmfuse.lowering.pypto.kernels.codes import by_largest, summed, undone
from glmfuse.lowering.pypto.kernels.swiglu import activated, halves
from glmfuse.lowering.pypto.kernels.vector import Block, scope, widened

Coded = tuple[Any, Any]
"""Codes [size, width], and the scale of each row [size, 1]."""


def build(plan: FeedForward) -> Any:
    """The kernel of `swiglu_mlp_<scheme>`, and where x comes as codes that of `quant_mlp_<scheme>`.

    x [tokens, hidden], floats or codes; per_token [tokens, 1] fp32, the scales of such codes; weights as codes,
    [out, in] or [in, out], each with its scales [1, out] fp32 -> y [tokens, out]. merged: gate and up are the halves
    of w_gate. What a variant does not have is passed as any tensor of the dtype and not read.
    """
    element, code = getattr(pypto, plan.dtype), getattr(pypto, plan.codes)
    given = code if plan.is_coded else element

    @pypto.frontend.jit()
    def swiglu_mlp_quant(
        x: pypto.Tensor([pypto.DYNAMIC, ...], given),
        per_token: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        w_gate: pypto.Tensor([], code),
        s_gate: pypto.Tensor([], pypto.DT_FP32),
        w_up: pypto.Tensor([], code),
        s_up: pypto.Tensor([], pypto.DT_FP32),
        w_down: pypto.Tensor([], code),
        s_down: pypto.Tensor([], pypto.DT_FP32),
        y: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + plan.block - 1) // plan.block, name="T", idx_name="i"):
            layer = Layer(plan, Block(plan.block, i, tokens))
            rows = layer.rows(x, per_token)
            layer.store(layer.down(layer.up(rows, [(w_gate, s_gate), (w_up, s_up)]), (w_down, s_down)), y)

    return swiglu_mlp_quant


class Layer:
    """One round of the loop, for one block of the tokens: five stages, or four behind codes."""

    def __init__(self, plan: FeedForward, at: Block) -> None:
        self.plan = plan
        self.at = at
        self.element = getattr(pypto, plan.dtype)
        self.total = summed(plan.codes)

    def rows(self, x: Any, per_token: Any) -> Coded:
        """This round's codes and the scale of each, as they come or made of floats."""
        plan, at = self.plan, self.at
        if plan.is_coded:
            return at.of(x, plan.hidden), at.of(per_token, 1)
        pypto.set_vec_tile_shapes(plan.rows, plan.width)
        scope(1)
        codes, scale = by_largest(at, widened(at.of(x, plan.hidden)), plan.codes)
        scope(-1)
        return codes, scale

    def up(self, rows: Coded, weights: list[tuple[Any, Any]]) -> Coded:
        """What is activated, as codes. weights: gate and up with their scales; where merged, the first has both."""
        plan, (codes, per_token) = self.plan, rows
        pypto.set_cube_tile_shapes(*plan.wide.arguments())
        layers = weights[:1] if plan.merged else weights
        sums = [pypto.matmul(codes, weight, self.total, b_trans=plan.held) for weight, _ in layers]
        pypto.set_vec_tile_shapes(plan.mid_rows, (2 if plan.merged else 1) * plan.mid_width)
        wide = [self.floats(part, scale, per_token) for part, (_, scale) in zip(sums, layers, strict=True)]
        pypto.set_vec_tile_shapes(plan.mid_rows, plan.mid_width)
        gate, up_part = halves(self.at, wide[0], plan.inter) if plan.merged else wide
        return by_largest(self.at, widened(activated(gate, up_part, self.element)), plan.codes)

    def down(self, rows: Coded, weight: tuple[Any, Any]) -> Any:
        """The outputs."""
        plan, (codes, per_token) = self.plan, rows
        pypto.set_cube_tile_shapes(*plan.narrow.arguments())
        sums = pypto.matmul(codes, weight[0], self.total, b_trans=plan.held)
        pypto.set_vec_tile_shapes(plan.out_rows, plan.narrow.n)
        return self.floats(sums, weight[1], per_token)

    def floats(self, sums: Any, scale: Any, per_token: Any) -> Any:
        """Sums of products as numbers, rounded."""
        return pypto.cast(undone(sums, scale, per_token), self.element)

    def store(self, result: Any, y: Any) -> None:
        """This round's outputs."""
        self.at.put(result, y, 0)
