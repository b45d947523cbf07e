"""`rms_norm` and `add_rms_norm` as PyPTO kernels."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, row_fits, same_dtype, storable
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import tail, token_block, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 4
"""fp32 rows in the unified buffer at once: x, x², x / rms, and the product; more spill (measured)."""


def _limits(chip: Chip, site: Request) -> str | None:
    x = site.tensors["x"]
    return first(
        lambda: storable(x),
        lambda: same_dtype(x, site.tensors["w"]),
        lambda: same_dtype(x, site.tensors.get("residual", x)),
        lambda: next((reason for output in site.outputs if (reason := contiguous(output)) is not None), None),
        lambda: row_fits(chip, x.shape[-1], _LIVE_ROWS),
    )


def _launch(chip: Chip, x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None) -> Launch:
    hidden = x.shape[-1]
    flat = x.reshape(-1, hidden)
    width = tail(chip, hidden)
    block = token_block(len(flat), 64)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.rms_norm:build",
        hidden=hidden,
        block=block,
        rows=vector_rows(chip, width, block, _LIVE_ROWS),
        width=width,
        eps=eps,
        dtype=DTYPES[x.dtype],
        has_residual=residual is not None,
    )
    others = () if residual is None else (residual.reshape(-1, hidden),)
    inputs = (flat, *others, w.view(1, hidden))
    outputs = ((tuple(flat.shape), x.dtype),) * (1 + len(others))

    def finish(made: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        shaped = tuple(tensor.view(x.shape) for tensor in made)
        return shaped[0] if residual is None else shaped

    return Launch(kernel, inputs, outputs, finish)


RMS_NORM = PyptoKernel(_limits, _launch)
ADD_RMS_NORM = PyptoKernel(_limits, _launch)
