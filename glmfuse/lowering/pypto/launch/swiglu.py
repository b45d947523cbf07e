"""`swiglu` as a PyPTO kernel."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, same_dtype, storable
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import token_block, vector_tile
from glmfuse.matching.select import Request

LIVE_ROWS = 6
"""fp32 rows at once: gate, up, the exponential, the quotient, and two results."""


def _limits(chip: Chip, site: Request) -> str | None:
    gate = site.tensors["gate"]
    return first(
        lambda: storable(gate),
        lambda: same_dtype(gate, site.tensors.get("up", gate)),
        lambda: contiguous(site.outputs[0]),
        lambda: fixed("the width", gate.shape[-1]),
    )


def _launch(chip: Chip, gate: Tensor, up: Tensor | None) -> Launch:
    inter = gate.shape[-1] if up is not None else gate.shape[-1] // 2
    inputs = tuple(part.reshape(-1, part.shape[-1]) for part in (gate, up) if part is not None)
    tokens = len(inputs[0])
    block = token_block(tokens, 64)
    rows, width = vector_tile(chip, inter, block, LIVE_ROWS)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.swiglu:build",
        inter=inter,
        block=block,
        rows=rows,
        width=width,
        merged=up is None,
        dtype=DTYPES[gate.dtype],
    )
    shape = (*gate.shape[:-1], inter)
    return Launch(kernel, inputs, (((tokens, inter), gate.dtype),), lambda made: made[0].view(shape))


SWIGLU = PyptoKernel(_limits, _launch)
