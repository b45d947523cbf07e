"""One aten operator as a launch of its own, for the time that it takes there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch
from glmfuse.lowering.pypto.launch.limits import DTYPES
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import token_block, vector_tile

_LIVE_ROWS = 4
_REDUCTIONS = ("mean", "sum")


def operator_launch(chip: Chip, name: str, operands: Sequence[Tensor], result: Tensor) -> Launch:
    """A kernel that reads the operands, does one vector operator and writes the result.

    Of more operands than two the first two are read, and one that broadcasts along several axes is read as
    one row: the time is, if anything, too short.
    """
    kind = _kind(name, operands)
    x = _rows(max(operands, key=torch.numel) if kind in ("map", "zip") else operands[0])
    width, out = x.shape[-1], result.shape[-1] if kind in ("topk", "reduce") else x.shape[-1]
    others: tuple[Tensor, ...] = ()
    spread = False
    if kind == "zip":
        other = next(o for o in operands if o is not max(operands, key=torch.numel))
        spread = other.numel() != x.numel()
        others = (torch.empty(1, width, dtype=_stored(other)) if spread else _rows(other).view(x.shape),)
    block = token_block(len(x), 64)
    rows, columns = vector_tile(chip, width, block, _LIVE_ROWS)
    dtype = _stored(result)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.operator:build",
        kind=kind,
        width=width,
        out=out,
        spread=spread,
        block=block,
        rows=rows,
        columns=columns,
        dtypes=(*(DTYPES[tensor.dtype] for tensor in (x, *others)), DTYPES[dtype]),
    )
    return Launch(kernel, (x, *others), (((len(x), out), dtype),), lambda made: made[0])


def _kind(name: str, operands: Sequence[Tensor]) -> str:
    if name in _REDUCTIONS:
        return "reduce"
    return "topk" if name == "topk" else "zip" if len(operands) > 1 else "map"


def _rows(tensor: Tensor) -> Tensor:
    """As [rows, last axis], in a dtype that kernels take."""
    return tensor.to(_stored(tensor)).reshape(-1, tensor.shape[-1])


def _stored(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or for masks and indices one of at most their size."""
    if tensor.dtype in DTYPES:
        return tensor.dtype
    return torch.bfloat16 if tensor.dtype == torch.bool else torch.float32
