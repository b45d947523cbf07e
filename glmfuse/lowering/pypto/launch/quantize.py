"""`quantize` and `dynamic_quantize` as PyPTO kernels: what fused kernels are timed against."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel, Result
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, row_fits, storable
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import tail, token_block, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 4


def _limits(chip: Chip, site: Request) -> str | None:
    x, factor, offset = site.tensors["x"], site.tensors.get("scale"), site.tensors.get("offset")
    return first(
        lambda: storable(x),
        lambda: next((why for output in site.outputs if (why := contiguous(output)) is not None), None),
        lambda: row_fits(chip, x.shape[-1], _LIVE_ROWS),
        lambda: "a quotient; the kernel multiplies (divide=1)" if site.scalars.get("divide") else None,
        lambda: None if factor is None or offset is not None else "no offset; the kernel adds 1",
        lambda: (
            None
            if factor is None or offset is None or (factor.shape, factor.dtype) == (offset.shape, offset.dtype)
            else f"a scale {factor} and an offset {offset}; the kernel reads them alike"
        ),
    )


def _launch(
    chip: Chip,
    x: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    inverse: Tensor | None = None,
    divide: bool = False,
) -> Launch:
    hidden = x.shape[-1]
    flat = x.reshape(-1, hidden)
    width = tail(chip, hidden)
    block = token_block(len(flat), 64)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.quantize:build",
        hidden=hidden,
        block=block,
        rows=vector_rows(chip, width, block, _LIVE_ROWS),
        width=width,
        channels=0 if scale is None else scale.shape[0],
        codes="DT_INT8",
        dtypes=(DTYPES[x.dtype], DTYPES[x.dtype if scale is None else scale.dtype]),
    )
    moved = tuple(given.view(1, -1) for given in (scale, offset) if given is not None)
    rows = (tuple(flat.shape), torch.int8)
    outputs = (rows,) if scale is not None else (rows, ((len(flat), 1), torch.float32))

    def finish(made: tuple[Tensor, ...]) -> Result:
        shaped = made[0].view(x.shape)
        return shaped if scale is not None else (shaped, made[1].view(x.shape[:-1]))

    return Launch(kernel, (flat, *moved), outputs, finish)


QUANTIZE = PyptoKernel(_limits, _launch)
