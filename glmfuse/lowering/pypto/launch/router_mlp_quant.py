"""`router_mlp_*` and `router_quant_mlp_*` in int8 and float8 as PyPTO kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.gate_topk import gate_of
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import first, router_dtypes, row_fits
from glmfuse.lowering.pypto.launch.route_topk import LIVE_ROWS, weights_and_ids
from glmfuse.lowering.pypto.launch.swiglu_mlp_quant import WEIGHTS, feed_forward_of, inputs_of, limits
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.matching.select import Request


def _limits(chip: Chip, site: Request) -> str | None:
    x, w = site.tensors["x"], site.tensors["w_router"]
    return first(
        lambda: limits(chip, site),
        lambda: router_dtypes(x, w),
        lambda: row_fits(chip, w.shape[0], LIVE_ROWS),
    )


def _launch(
    chip: Chip,
    x: Tensor,
    w_router: Tensor,
    bias: Tensor,
    w_gate: Tensor,
    s_gate: Tensor,
    w_up: Tensor | None,
    s_up: Tensor | None,
    w_down: Tensor,
    s_down: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
    rows: Tensor | None = None,
    per_token: Tensor | None = None,
) -> Launch:
    plan = feed_forward_of(chip, x, rows, w_gate, w_up, w_down)
    flat = x.reshape(-1, plan.hidden)
    gate = gate_of(chip, flat, w_router, top_k, n_group, topk_group, renormalize, scale)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.router_mlp_quant:build", gate=gate, plan=plan)
    expert = inputs_of(plan, x, rows, per_token, (w_gate, s_gate), (w_up, s_up), (w_down, s_down))
    inputs = (flat, w_router, bias.to(torch.float32).view(1, -1), *expert)
    outputs = (*weights_and_ids(len(flat), top_k), ((len(flat), plan.out), x.dtype))
    shape = (*x.shape[:-1], plan.out)

    def finish(made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return made[0], made[1], made[2].view(shape)

    places = {1, *(len(inputs) - len(expert) + place for place in WEIGHTS)}
    return Launch(kernel, inputs, outputs, finish, frozenset(places))


ROUTER_MLP_QUANT = PyptoKernel(_limits, _launch)
