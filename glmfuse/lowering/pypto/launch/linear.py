"""`linear` as a PyPTO kernel: what fused kernels are timed against; alone it saves no launch."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, same_dtype, storable
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tokens_of_round, vector_tile
from glmfuse.matching.select import Request

_LIVE_ROWS = 4
"""fp32 rows of the result at once, where there is a bias."""


def _limits(chip: Chip, site: Request) -> str | None:
    x, w = site.tensors["x"], site.tensors["w"]
    return first(
        lambda: storable(x),
        lambda: same_dtype(x, w),
        lambda: contiguous(site.outputs[0]),
        lambda: fixed("hidden", x.shape[-1]),
    )


def _launch(chip: Chip, x: Tensor, w: Tensor, b: Tensor | None) -> Launch:
    out, hidden = w.shape
    flat = x.reshape(-1, hidden)
    tokens = len(flat)
    block = tokens_of_round(tokens)
    rows, width = vector_tile(chip, out, min(block, 8), _LIVE_ROWS)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.linear:build",
        hidden=hidden,
        out=out,
        block=block,
        rows=rows,
        width=width,
        cube=cube_tile(chip, block, hidden, out, x.element_size()),
        has_bias=b is not None,
        dtype=DTYPES[x.dtype],
    )
    bias = () if b is None else (b.view(1, out),)
    shape = (*x.shape[:-1], out)
    outputs = (((tokens, out), x.dtype),)
    return Launch(kernel, (flat, w, *bias), outputs, lambda made: made[0].view(shape), frozenset({1}))


LINEAR = PyptoKernel(_limits, _launch)
