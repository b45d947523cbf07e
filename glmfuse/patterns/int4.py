"""Two int4 in a byte; no pattern by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_int4(packed: Tensor) -> Tensor:
    """The two's complements -8 ... 7 in each byte, the low nibble first.  [..., n] uint8 -> [..., 2 n] int8.

    Source: how the kernels of npu_grouped_matmul read int4 beside int8, op-plugin 517f2e7.
    """
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return (nibbles ^ 8).to(torch.int8) - 8


def pack_int4(values: Tensor) -> Tensor:
    """The same back.  values [..., 2 n] int8 within -8 ... 7 -> [..., n] uint8."""
    low, high = (values.to(torch.uint8) & 15).unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def unpack_words(packed: Tensor) -> Tensor:
    """The eight in each word, the lowest bits first.  [..., n] int32 -> [..., 8 n] int8.

    The bytes of a word lie lowest first, as on every machine that torch_npu is built for. Source:
    npu_convert_weight_to_int4pack of torch_npu, op-plugin 517f2e7.
    """
    return unpack_int4(packed.view(torch.uint8))
