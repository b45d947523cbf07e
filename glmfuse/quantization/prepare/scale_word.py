"""Scales as int64: what the fixpipe takes for a product of int8, and what grouped products of int4 take."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.patterns.split_int4 import fp32_of
from glmfuse.quantization.prepare.expect import shaped

_FP19: Final = 0xFFFFE000
"""fp32 without its lowest 13 bits."""

_MARK: Final = 1 << 46
_OFFSET_AT: Final = 37


def trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int = 0, layer: str = "scale") -> Tensor:
    """fp32 scales as 19 bits in the lower half, bit 46 set, an offset of nine bits at 37.

    scale, offset [...] fp32 -> [...] int64. round_mode 0 cuts the other 13 bits off, 1 goes to the nearest of 19
    bits, halves to the even one. offset is rounded and held to -256 ... 255. Source: npu_trans_quant_param of
    torch_npu, op-plugin 517f2e7; that halves go to the even one is read into its "R_INT".

    Raises:
        QuantizationError: the scales are no fp32, or the offsets have another shape.
    """
    bits = _bits(shaped(layer, "scale", scale, scale.shape, torch.float32))
    if round_mode == 1:
        bits = bits + 0xFFF + ((bits >> 13) & 1)
    word = (bits & _FP19) | _MARK
    if offset is None:
        return word
    whole = shaped(layer, "offset", offset, scale.shape, torch.float32).round().clamp(-256, 255).to(torch.int64)
    return word | ((whole & 0x1FF) << _OFFSET_AT)


def wide_bits(scale: Tensor, layer: str = "scale") -> Tensor:
    """The bits of fp32 scales in the lower halves, the upper ones zero.  [...] fp32 -> [...] int64.

    Source: vllm-ascend, _process_scale of w4a8.py.

    Raises:
        QuantizationError: the scales are no fp32.
    """
    return _bits(shaped(layer, "scale", scale, scale.shape, torch.float32))


def scale_of(word: Tensor) -> Tensor:
    """The fp32 scales in the lower halves of int64 words: `wide_bits` undone, and what a cut one is read as."""
    return fp32_of(word)


def _bits(scale: Tensor) -> Tensor:
    return scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
