"""`gate_topk` as a PyPTO kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, first, fixed, row_fits, same_dtype, storable
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 8
"""fp32 rows of scores at once: logits, scores, choice, mask, and top-k's own."""

_MOST_ROWS = 8

_MOST_SLICES = 32
"""Few columns leave cube cores idle: the product is cut along hidden as well, and its parts summed."""


def _limits(chip: Chip, site: Request) -> str | None:
    x, w = site.tensors["x"], site.tensors["w"]
    return first(
        lambda: storable(x),
        lambda: same_dtype(x, w),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, w.shape[0], _LIVE_ROWS),
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
    tokens, hidden = x.shape
    experts = w.shape[0]
    block = tokens_of_round(tokens)
    cube = cube_tile(chip, block, hidden, experts, x.element_size(), slices=_MOST_SLICES)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.gate_topk:build",
        hidden=hidden,
        experts=experts,
        top_k=top_k,
        n_group=n_group,
        topk_group=topk_group,
        renormalize=renormalize,
        scale=scale,
        block=block,
        rows=min(_MOST_ROWS, vector_rows(chip, experts, block, _LIVE_ROWS + cube.slices)),
        cube=cube,
        dtype=DTYPES[x.dtype],
    )
    shape = (tokens, top_k)
    outputs = ((shape, torch.float32), (shape, torch.int32))
    inputs = (x, w, bias.to(torch.float32).view(1, experts))
    return Launch(kernel, inputs, outputs, lambda made: (made[0], made[1].to(torch.int64)))


GATE_TOPK = PyptoKernel(_limits, _launch)
