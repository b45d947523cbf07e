"""Numbers rounded to int8; no pattern by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def saturated(x: Tensor) -> Tensor:
    """The nearest of -128 ... 127, halves to the even one; what is no number becomes 0.  x fp32 -> int8, alike.

    Source: the conversions of Ascend's quantising kernels (fp32 to int32 by RINT, to fp16, to int8), hicann/ops-nn
    e5c3fa9; read, not run on a chip.
    """
    return torch.nan_to_num(x.round(), nan=0.0).clamp(-128, 127).to(torch.int8)
