"""A feed-forward layer in codes, in one launch: codes of x, up, SwiGLU and its codes, down, floats."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.feed_forward import FeedForward
from glmfuse.lowering.pypto.kernels.codes import by_largest, summed, undone
from glmfuse.lowering.pypto.kernels.swiglu import activated, halves
from glmfuse.lowering.pypto.kernels.vector import Block, scope, widened


def build(plan: FeedForward) -> Any:
    """The kernel of `swiglu_mlp_<scheme>`.

    x [tokens, hidden]; weights as codes, [out, in] or [in, out], each with its scales [1, out] fp32 -> y
    [tokens, out]. merged: gate and up are the halves of one matrix.
    """
    element, code = getattr(pypto, plan.dtype), getattr(pypto, plan.codes)

    if plan.merged:

        @pypto.frontend.jit()
        def swiglu_mlp_quant(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w_gate: pypto.Tensor([], code),
            s_gate: pypto.Tensor([], pypto.DT_FP32),
            w_down: pypto.Tensor([], code),
            s_down: pypto.Tensor([], pypto.DT_FP32),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + plan.block - 1) // plan.block, name="T", idx_name="i"):
                feed_forward(plan, Block(plan.block, i, tokens), x, [(w_gate, s_gate)], (w_down, s_down), y)

    else:

        @pypto.frontend.jit()
        def swiglu_mlp_quant(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
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
                up = [(w_gate, s_gate), (w_up, s_up)]
                feed_forward(plan, Block(plan.block, i, tokens), x, up, (w_down, s_down), y)

    return swiglu_mlp_quant


def feed_forward(
    plan: FeedForward, at: Block, x: Any, up: list[tuple[Any, Any]], down: tuple[Any, Any], y: Any
) -> None:
    """One round: five stages. `up` are weights and scales of gate and up, or of both in one."""
    element, total = getattr(pypto, plan.dtype), summed(plan.codes)
    pypto.set_vec_tile_shapes(plan.rows, plan.width)
    scope(1)
    codes, per_token = by_largest(at, widened(at.of(x, plan.hidden)), plan.codes)
    scope(-1)
    pypto.set_cube_tile_shapes(*plan.wide.arguments())
    sums = [pypto.matmul(codes, weight, total, b_trans=plan.held) for weight, _ in up]
    pypto.set_vec_tile_shapes(plan.mid_rows, (2 if plan.merged else 1) * plan.mid_width)
    wide = [pypto.cast(undone(part, scale, per_token), element) for part, (_, scale) in zip(sums, up, strict=True)]
    pypto.set_vec_tile_shapes(plan.mid_rows, plan.mid_width)
    gate, up_part = halves(at, wide[0], plan.inter) if plan.merged else wide
    active = widened(activated(gate, up_part, element))
    codes, per_token = by_largest(at, active, plan.codes)
    pypto.set_cube_tile_shapes(*plan.narrow.arguments())
    result = pypto.matmul(codes, down[0], total, b_trans=plan.held)
    pypto.set_vec_tile_shapes(plan.out_rows, plan.narrow.n)
    at.put(pypto.cast(undone(result, down[1], per_token), element), y, 0)
