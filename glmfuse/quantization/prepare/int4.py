"""int4 packed: two to a byte and eight to an int32, the first in the lowest bits.

A byte has two neighbours along the last axis, an int32 four such bytes, the first lowest: so the words are the bytes
read as int32 on a little-endian machine, and nothing moves between the two forms.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.patterns.int4 import pack_int4, unpack_int4
from glmfuse.quantization.prepare.expect import divides, refusal

LEAST, MOST = -8, 7
TO_A_WORD: Final = 8


def pack_bytes(values: Tensor, layer: str = "int4") -> Tensor:
    """[..., 2 n] int8 of -8 ... 7 -> [..., n] uint8, the even one in the low nibble, two's complement.

    Source: vllm-ascend, _pack_int4_to_int8 of w4a8.py; ModelSlim's version 1.0.0 holds weights so.

    Raises:
        QuantizationError: an odd number of values, or one that is no int4.
    """
    divides(layer, 2, values.shape[-1], "an even number of int4")
    if values.numel() and (values.min() < LEAST or values.max() > MOST):
        raise refusal(layer, f"int4, {LEAST} to {MOST}", f"{int(values.min())} to {int(values.max())}")
    return pack_int4(values)


def unpack_bytes(packed: Tensor) -> Tensor:
    """[..., n] of bytes -> [..., 2 n] int8; undoes `pack_bytes`."""
    return unpack_int4(packed.view(torch.uint8))


def words(packed: Tensor, layer: str = "int4") -> Tensor:
    """[..., 4 n] bytes of two int4 -> [..., n] int32 of eight, as the operators take them.

    Source: npu_convert_weight_to_int4pack of op-plugin 517f2e7; _pack_to_int32 of vllm-ascend's w4a8.py.

    Raises:
        QuantizationError: the last axis has no whole words.
    """
    divides(layer, TO_A_WORD, 2 * packed.shape[-1], f"a multiple of {TO_A_WORD} int4 along the last axis")
    return packed.contiguous().view(torch.int32)


def bytes_of(packed: Tensor) -> Tensor:
    """[..., n] int32 -> [..., 4 n] uint8; undoes `words`."""
    return packed.contiguous().view(torch.uint8)


def pack_words(values: Tensor, layer: str = "int4") -> Tensor:
    """[..., 8 n] int8 of -8 ... 7 -> [..., n] int32."""
    return words(pack_bytes(values, layer), layer)


def unpack_words(packed: Tensor) -> Tensor:
    """[..., n] int32 -> [..., 8 n] int8; undoes `pack_words`."""
    return unpack_bytes(bytes_of(packed))


def as_read(weight: Tensor, inputs: int, outputs: int, layer: str = "int4") -> Tensor:
    """A held weight as it is multiplied: [..., in, out / 2] uint8, two outputs to a byte.

    weight [..., out, in] int8 is of the old version, one int4 to each; [..., out / 2, in] of version 1.0.0, two
    outputs to each. Source: vllm-ascend, process_weights_after_loading of w4a8.py; its 5f8b1699ae for linears.

    Raises:
        QuantizationError: it is neither.
    """
    shape = tuple(weight.shape[-2:])
    if weight.dtype == torch.int8 and shape == (outputs // 2, inputs):
        return weight.mT.contiguous().view(torch.uint8)
    if weight.dtype == torch.int8 and shape == (outputs, inputs):
        return pack_bytes(weight.mT, layer)
    wanted = f"weight [{outputs}, {inputs}], or [{outputs // 2}, {inputs}] of version 1.0.0, of int8"
    raise refusal(layer, wanted, f"{list(weight.shape)} of {str(weight.dtype).removeprefix('torch.')}")
