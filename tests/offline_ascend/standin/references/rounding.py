"""Numbers as the kernels make them: integers by round half to even, saturated; products of integers exact."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Unsupported

# torch_npu passes dtypes as integers: torch's ScalarType. Quantised dtypes are held as plain integers.
DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    12: torch.int8,  # qint8
    13: torch.uint8,  # quint8
    14: torch.int32,  # qint32
    15: torch.bfloat16,
    16: torch.int32,  # quint4x2: eight of them in each
}
INT4 = 16
EVERY_8 = 8
AS_INT8 = (None, 1, 12)  # the ways to ask for int8


def dtype_of(code: int | torch.dtype | None, otherwise: torch.dtype) -> torch.dtype:
    """The dtype that a dtype argument means."""
    if code is None:
        return otherwise
    if isinstance(code, torch.dtype):
        return code
    if code not in DTYPES:
        raise Unsupported(f"dtype {code} is of chips that the references do not cover (Atlas A2 and A3 are)")
    return DTYPES[code]


def int8(values: Tensor) -> Tensor:
    """Round half to even, saturate: RN to [-128, 127]. A value that is no number becomes 0."""
    return _saturated(values, -128, 127).to(torch.int8)


def int4(values: Tensor) -> Tensor:
    """Round half to even, saturate to [-8, 7], and pack along the last axis into int32."""
    return pack(_saturated(values, -8, 7).to(torch.int8))


def uint8(values: Tensor) -> Tensor:
    """Round half to even, saturate to [0, 255]."""
    return _saturated(values, 0, 255).to(torch.uint8)


def _saturated(values: Tensor, low: int, high: int) -> Tensor:
    return torch.nan_to_num(values.round(), nan=0.0, posinf=high, neginf=low).clamp(low, high)


def pack(values: Tensor) -> Tensor:
    """Eight int4 to an int32, the first in the lowest bits.  [..., 8 n] int8 -> [..., n] int32."""
    nibbles = (values.to(torch.int64) & 0xF).unflatten(-1, (-1, EVERY_8))
    word = sum(nibbles[..., i] << (4 * i) for i in range(EVERY_8))
    assert isinstance(word, Tensor)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def unpack(words: Tensor) -> Tensor:
    """The int4 in int32 words.  [..., n] int32 -> [..., 8 n] int8."""
    word = words.to(torch.int64) & 0xFFFFFFFF
    nibbles = torch.stack([(word >> (4 * i)) & 0xF for i in range(EVERY_8)], -1)
    return torch.where(nibbles >= 8, nibbles - 16, nibbles).flatten(-2).to(torch.int8)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of integers, exact in fp64 up to 2^53."""
    return (a.double() @ b.double()).round()


def by_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row scaled to [-127, 127], and the fp32 scales that undo it: q = v * (127 / max), scale = 1 / (127 / max).

    A2 and A3 take both reciprocals, so the scale is not max / 127 to the last bit.
    """
    return scaled_by_rows(values, 127.0)


def scaled_by_rows(values: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """As `by_rows`, for any limit. A row of zeros has scale 0."""
    factor = torch.tensor(limit) / values.abs().amax(-1, keepdim=True)
    return values * factor, (1 / factor).squeeze(-1)
