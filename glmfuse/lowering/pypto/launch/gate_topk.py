"""`gate_topk` as a PyPTO kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.gate import Gate
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, first, fixed, router_dtypes, row_fits
from glmfuse.lowering.pypto.launch.route_topk import LIVE_ROWS, MOST_ROWS, weights_and_ids
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import FP32, cube_tile, tokens_of_round, vector_rows, vector_tile
from glmfuse.matching.select import Request

_MOST_SLICES = 32
"""Few columns leave cube cores idle: the product is cut along hidden as well, and its parts summed."""

_LIVE_X = 2
"""Rows of x at once where it is cast: as stored and in fp32."""

_FEWEST_CASTS = 4
"""Each slice of the product waits for one of them. More cost their dispatch, fewer the wait for all of x."""


def _limits(chip: Chip, site: Request) -> str | None:
    x, w = site.tensors["x"], site.tensors["w"]
    return first(
        lambda: router_dtypes(x, w),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, w.shape[0], LIVE_ROWS),
    )


def _launch(
    chip: Chip,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> Launch:
    gate = gate_of(chip, x, w, top_k, n_group, topk_group, renormalize, scale)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.gate_topk:build", gate=gate)
    inputs = (x, w, bias.to(torch.float32).view(1, gate.experts))
    return Launch(kernel, inputs, weights_and_ids(x.shape[0], top_k), tuple, frozenset({1}))


def gate_of(
    chip: Chip,
    x: Tensor,
    w: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> Gate:
    """What a router's kernel is built for, from the arguments of `gate_topk`."""
    (tokens, hidden), experts = x.shape, w.shape[0]
    block = tokens_of_round(tokens)
    cube = cube_tile(chip, block, hidden, experts, w.element_size(), slices=_MOST_SLICES)
    cast = _channels_of_a_cast(chip, block, hidden // cube.slices, cube.slices)
    x_rows, width = vector_tile(chip, cast, block, _LIVE_X)
    return Gate(
        hidden=hidden,
        experts=experts,
        top_k=top_k,
        n_group=n_group,
        topk_group=topk_group,
        renormalize=renormalize,
        scale=scale,
        block=block,
        rows=min(MOST_ROWS, vector_rows(chip, experts, block, LIVE_ROWS + cube.slices)),
        x_rows=x_rows,
        width=width,
        cast=cast,
        cube=cube,
        x_dtype=DTYPES[x.dtype],
        w_dtype=DTYPES[w.dtype],
    )


def _channels_of_a_cast(chip: Chip, block: int, depth: int, slices: int) -> int:
    """Whole slices of the product: all rows of them in one task, in half of the buffer, and several tasks in all."""
    most = min(chip.ub // 2 // (_LIVE_X * FP32 * block) // depth, slices // _FEWEST_CASTS)
    return depth * next((count for count in range(most, 1, -1) if slices % count == 0), 1)


GATE_TOPK = PyptoKernel(_limits, _launch)
