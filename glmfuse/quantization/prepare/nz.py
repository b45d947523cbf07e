"""FRACTAL_NZ (format 29): a matrix as columns of fractals of 16 rows by 32 bytes, as the cube cores read it.

On an NPU `npu_format_cast` makes it, outside of graphs. These are its bytes on a CPU. The format counts bytes, so
that int4, two to a byte or eight to an int32, lies alike whether it is packed before or after.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from glmfuse.lowering.pypto.launch.formats import in_nz
from glmfuse.quantization.prepare.expect import refusal

ROWS: Final = 16
BYTES: Final = 32


def to_nz(matrix: Tensor) -> Tensor:
    """[..., rows, columns] -> [..., columns / c, rows / 16, 16, c], c elements in 32 bytes; filled up with zeros.

    Element [r, k] goes to [k // c, r // 16, r % 16, k % c]. Source: FRACTAL_NZ of the Ascend C documentation;
    torch_npu 2.13 allocates as much for it.

    Raises:
        QuantizationError: it is no matrix.
    """
    if matrix.dim() < 2:
        raise refusal("a weight in NZ", "a matrix", f"{list(matrix.shape)}")
    width = BYTES // matrix.element_size()
    *lead, rows, columns = matrix.shape
    padded = matrix.new_zeros(*lead, rows + -rows % ROWS, columns + -columns % width)
    padded[..., :rows, :columns] = matrix
    return in_nz(padded).view(*lead, padded.shape[-1] // width, padded.shape[-2] // ROWS, ROWS, width)


def from_nz(fractals: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix [..., rows, columns] that lies so.

    Raises:
        QuantizationError: these are no fractals of such a matrix.
    """
    width = BYTES // fractals.element_size()
    wanted = (-(-columns // width), -(-rows // ROWS), ROWS, width)
    if tuple(fractals.shape[-4:]) != wanted:
        raise refusal("a weight in NZ", f"fractals {list(wanted)}", f"{list(fractals.shape)}")
    return fractals.movedim(-4, -2).flatten(-2).flatten(-3, -2)[..., :rows, :columns].contiguous()
