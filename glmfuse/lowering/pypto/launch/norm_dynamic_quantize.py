"""`norm_dynamic_quantize` as a PyPTO kernel.

Its sister in float8 has none: PyPTO's interpreter cannot be asked for a tensor of float8, so nothing would hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, half, row_fits, same_dtype
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import tail, token_block, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 4
"""fp32 rows in the unified buffer at once, as of a norm alone; more spill (measured)."""


def _limits(chip: Chip, site: Request) -> str | None:
    x = site.tensors["x"]
    return first(
        lambda: half(x),
        lambda: same_dtype(x, site.tensors["w_norm"]),
        lambda: same_dtype(x, site.tensors.get("residual", x)),
        lambda: next((reason for output in site.outputs if (reason := contiguous(output)) is not None), None),
        lambda: row_fits(chip, x.shape[-1], _LIVE_ROWS),
    )


def _launch(chip: Chip, x: Tensor, residual: Tensor | None, w_norm: Tensor, eps: float) -> Launch:
    hidden = x.shape[-1]
    flat = [given.reshape(-1, hidden) for given in (x, residual) if given is not None]
    width, block = tail(chip, hidden), token_block(len(flat[0]), 64)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.norm_dynamic_quantize:build",
        hidden=hidden,
        block=block,
        rows=vector_rows(chip, width, block, _LIVE_ROWS),
        width=width,
        eps=eps,
        dtype=DTYPES[x.dtype],
        has_residual=residual is not None,
    )
    shape = tuple(flat[0].shape)
    outputs = ((shape, torch.int8), ((shape[0], 1), torch.float32), *((shape, x.dtype) for _ in flat))

    def finish(made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return made[0], made[1].view(-1), *(tensor.view(x.shape) for tensor in made[2:])

    return Launch(kernel, (*flat, w_norm.view(1, hidden)), outputs, finish)


NORM_DYNAMIC_QUANTIZE = PyptoKernel(_limits, _launch)
