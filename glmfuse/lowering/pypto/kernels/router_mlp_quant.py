"""The router and the shared expert in codes, of the same rows, in one launch."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.feed_forward import FeedForward
from glmfuse.lowering.pypto.gate import Gate
from glmfuse.lowering.pypto.kernels.gate_topk import Router, choice_of
from glmfuse.lowering.pypto.kernels.swiglu_mlp_quant import Layer
from glmfuse.lowering.pypto.kernels.vector import Block


def build(gate: Gate, plan: FeedForward) -> Any:
    """The kernel of `router_mlp_<scheme>`, and where x comes as codes too that of `router_quant_mlp_<scheme>`.

    The arguments and outputs of `gate_topk`, then those of `swiglu_mlp_quant`, whose x is `rows`; where these are not
    codes they are x. The router's two stages do not wait for the expert's, nor these for them.
    """
    element, code, stored = (getattr(pypto, name) for name in (plan.dtype, plan.codes, gate.w_dtype))
    given = code if plan.is_coded else element

    @pypto.frontend.jit()
    def router_mlp_quant(
        x: pypto.Tensor([pypto.DYNAMIC, ...], element),
        w: pypto.Tensor([], stored),
        bias: pypto.Tensor([], pypto.DT_FP32),
        rows: pypto.Tensor([pypto.DYNAMIC, ...], given),
        per_token: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        w_gate: pypto.Tensor([], code),
        s_gate: pypto.Tensor([], pypto.DT_FP32),
        w_up: pypto.Tensor([], code),
        s_up: pypto.Tensor([], pypto.DT_FP32),
        w_down: pypto.Tensor([], code),
        s_down: pypto.Tensor([], pypto.DT_FP32),
        weights: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ids: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT64),
        y: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + plan.block - 1) // plan.block, name="T", idx_name="i"):
            at = Block(plan.block, i, tokens)
            layer = Layer(plan, at)
            codes = layer.rows(rows if plan.is_coded else x, per_token)
            layer.store(layer.down(layer.up(codes, [(w_gate, s_gate), (w_up, s_up)]), (w_down, s_down)), y)
            choice_of(gate).choose(at, Router(gate).project(at, x, w), bias, weights, ids)

    return router_mlp_quant
