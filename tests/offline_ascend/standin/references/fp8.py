"""8-bit floats, which chips from Ascend950 on have: rows by the largest number of each, and products of them.

Atlas A2 and A3 have none, so there is less to go by: that rows are scaled as int8's are, with 448 for 127, is
assumed, and products are of fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.rounding import scaled_by_rows

FP8 = torch.float8_e4m3fn
CODE = 24  # torch's ScalarType
LARGEST = 448.0


def is_asked_for(dtype: object) -> bool:
    """Whether a dtype argument means e4m3fn."""
    return dtype in (CODE, FP8)


def rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3fn [..., n] and fp32 scales [...], row by row; a row of zeros is zeros with scale 0."""
    values, scale = scaled_by_rows(x.float(), LARGEST)
    return torch.where(values.isnan(), 0.0, values).clamp(-LARGEST, LARGEST).to(FP8), scale


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of e4m3fn, each product exact; summed in fp64 and rounded to fp32."""
    return (a.double() @ b.double()).float()
