"""`swiglu_mlp` as a PyPTO kernel."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, half
from glmfuse.lowering.pypto.launch.swiglu import LIVE_ROWS
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tokens_of_round, vector_tile
from glmfuse.matching.select import Request

_MOST_ROWS = 8


def _limits(chip: Chip, site: Request) -> str | None:
    x, down = site.tensors["x"], site.tensors["w_down"]
    return first(
        lambda: half(x),
        lambda: contiguous(site.outputs[0]),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: fixed("the width", down.shape[1]),
    )


def _launch(chip: Chip, x: Tensor, w_gate: Tensor, w_up: Tensor | None, w_down: Tensor) -> Launch:
    hidden, (out, inter) = x.shape[-1], w_down.shape
    flat = x.reshape(-1, hidden)
    block = tokens_of_round(len(flat))
    rows, width = vector_tile(chip, inter, min(block, _MOST_ROWS), LIVE_ROWS)
    itemsize = x.element_size()
    weights = (w_gate,) if w_up is None else (w_gate, w_up)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.swiglu_mlp:build",
        hidden=hidden,
        inter=inter,
        out=out,
        block=block,
        rows=rows,
        width=width,
        wide=cube_tile(chip, block, hidden, inter if w_up is not None else 2 * inter, itemsize),
        narrow=cube_tile(chip, block, inter, out, itemsize),
        merged=w_up is None,
        dtype=DTYPES[x.dtype],
    )
    shape = (*x.shape[:-1], out)
    inputs = (flat, *weights, w_down)
    matrices = frozenset(range(1, len(inputs)))
    return Launch(kernel, inputs, (((len(flat), out), x.dtype),), lambda made: made[0].view(shape), matrices)


SWIGLU_MLP = PyptoKernel(_limits, _launch)
