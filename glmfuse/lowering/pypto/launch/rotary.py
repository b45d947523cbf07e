"""`rotary` as a PyPTO kernel."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import (
    DTYPES,
    contiguous,
    first,
    fixed,
    halves,
    row_fits,
    same_dtype,
    storable,
)
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import token_block, vector_rows
from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Request

LIVE_ROWS = 4
"""fp32 rows of all heads in the unified buffer at once; more spill (measured)."""


def _limits(chip: Chip, site: Request) -> str | None:
    x, cos, sin = (site.tensors[name] for name in ("x", "cos", "sin"))
    return first(
        lambda: halves(site.scalars["interleaved"]),
        lambda: storable(x),
        lambda: same_dtype(x, cos) or same_dtype(x, sin),
        lambda: contiguous(site.outputs[0]),
        lambda: fixed("head_dim", x.shape[-1]),
        lambda: fixed("the rotary width", cos.shape[-1]),
        lambda: row_fits(chip, _row(x, cos), LIVE_ROWS),
    )


def _row(x: Layout, cos: Layout) -> object:
    axis = _shared_axis(x.shape, cos.shape)
    return x.shape[-1] if axis is None else x.shape[axis] * x.shape[-1]


def _shared_axis(x: tuple[object, ...], cos: tuple[object, ...]) -> int | None:
    """The axis of x, from the end, along which one row of cos serves all: the heads."""
    axes = (axis for axis in range(-2, -len(x) - 1, -1) if x[axis] != 1)
    return next((axis for axis in axes if -axis > len(cos) or cos[axis] == 1), None)


def _launch(chip: Chip, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Launch:
    axis = _shared_axis(x.shape, cos.shape)
    moved = x.unsqueeze(-2) if axis is None else x.movedim(axis, -2)
    heads, head_dim = moved.shape[-2:]
    flat = moved.reshape(-1, heads, head_dim)
    block = token_block(len(flat))
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.rotary:build",
        heads=heads,
        head_dim=head_dim,
        rotary=cos.shape[-1],
        block=block,
        rows=min(4, vector_rows(chip, heads * head_dim, block, LIVE_ROWS)),
        dtype=DTYPES[x.dtype],
    )

    def angles(table: Tensor) -> Tensor:
        full = table.expand(*(1 if i - x.dim() == axis else size for i, size in enumerate(x.shape[:-1])), -1)
        return (full if axis is None else full.movedim(axis, -2)).reshape(len(flat), 1, -1)

    def finish(made: tuple[Tensor, ...]) -> Tensor:
        shaped = made[0].view(moved.shape)
        return (shaped.squeeze(-2) if axis is None else shaped.movedim(-2, axis)).contiguous()

    return Launch(kernel, (flat, angles(cos), angles(sin)), ((tuple(flat.shape), x.dtype),), finish)


ROTARY = PyptoKernel(_limits, _launch)
