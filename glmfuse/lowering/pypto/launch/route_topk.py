"""`route_topk` as a PyPTO kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import row_fits
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import token_block, vector_rows
from glmfuse.matching.select import Request

LIVE_ROWS = 8
"""fp32 rows of scores at once: logits, scores, choice, mask, and top-k's own."""

MOST_ROWS = 8


def _limits(chip: Chip, site: Request) -> str | None:
    return row_fits(chip, site.tensors["logits"].shape[-1], LIVE_ROWS)


def _launch(
    chip: Chip,
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> Launch:
    tokens, experts = logits.shape
    block = token_block(tokens)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.route_topk:build",
        experts=experts,
        top_k=top_k,
        n_group=n_group,
        topk_group=topk_group,
        renormalize=renormalize,
        scale=scale,
        block=block,
        rows=min(MOST_ROWS, vector_rows(chip, experts, block, LIVE_ROWS)),
    )
    inputs = (logits, bias.to(torch.float32).view(1, experts))
    return Launch(kernel, inputs, weights_and_ids(tokens, top_k), tuple)


def weights_and_ids(tokens: int, top_k: int) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """The outputs of a router's kernel."""
    return ((tokens, top_k), torch.float32), ((tokens, top_k), torch.int64)


ROUTE_TOPK = PyptoKernel(_limits, _launch)
