"""In which format a kernel may be given its inputs on an NPU: NZ for a matrix that it multiplies, else ND.

No kernel here asks for NZ and none casts to it: a weight that its owner cast once, outside of the graph, is read as
it lies. PyPTO asks each tensor for its format, and compiles a kernel once for each.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.pypto.launch.launch import Launch

FRACTAL_NZ: Final = 29
"""ACL_FORMAT_FRACTAL_NZ: a matrix in fractals of 16 rows by 32 bytes, as the cube cores read it."""

_ROWS, _BYTES = 16, 32


def npu_format(tensor: Tensor) -> int:
    """The format of a tensor on an NPU, as PyPTO asks for it."""
    import torch_npu

    return int(torch_npu.get_npu_format(tensor))


def refusal(launch: Launch, formats: tuple[int, ...]) -> str | None:
    """Why the kernel cannot read its inputs in these formats, or None."""
    for place, (tensor, given) in enumerate(zip(launch.inputs, formats, strict=True)):
        if given == FRACTAL_NZ and (reason := _not_in_nz(launch, place, tensor)) is not None:
            shape = tuple(tensor.shape)
            return f"input {place}, {shape}, is in NZ, and {reason}; keep it in ND, or leave the pattern out (disable)"
    return None


def _not_in_nz(launch: Launch, place: int, matrix: Tensor) -> str | None:
    if place not in launch.matrices:
        return "the kernel reads it row by row"
    if matrix.dtype == torch.float32:
        return "PyPTO multiplies fp32 in ND alone"
    rows, columns = matrix.shape
    if rows % _ROWS or columns * matrix.element_size() % _BYTES:
        return f"its sizes are no multiples of {_ROWS} and {_BYTES} bytes"
    return None


def in_nz(matrix: Tensor) -> Tensor:
    """The numbers of matrices in the order of NZ, in the same shape: what lies in an NPU's memory.

    [..., rows, columns], both whole fractals. Source: FRACTAL_NZ of the Ascend C documentation: columns of fractals,
    each 16 by 32 bytes in row-major order; PyPTO's interpreter reads it so.
    """
    width = _BYTES // matrix.element_size()
    fractals = matrix.unflatten(-1, (-1, width)).unflatten(-3, (-1, _ROWS)).movedim(-2, -4)
    return fractals.contiguous().view(matrix.shape)
