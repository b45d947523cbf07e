"""int8 rows times int4 weights as a cube has it that multiplies int4 alone; no pattern by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both -8 ... 7: each number is 16 * high + low + 8.  [...] int8 -> [...] int32 twice.

    Source: the kernel of npu_grouped_matmul for Atlas A2 and A3, hicann/ops-transformer c29bc10.
    """
    whole = rows.to(torch.int32)
    return whole >> 4, (whole & 15) - 8


def fp32_of(word: Tensor) -> Tensor:
    """The fp32 number in the lower half of each word.  [...] int64 -> [...] fp32."""
    return word.to(torch.int32).view(torch.float32)


def leaving_the_cube(total: Tensor, scale: Tensor) -> Tensor:
    """The sums of products of one half and one group, scaled and rounded to fp16; fp32 again.

    total int32, scale fp32, which lie alike or are spread.
    """
    return (total.to(torch.float32) * scale).to(torch.float16).to(torch.float32)


def joined(high: Tensor, low: Tensor, assist: Tensor, per_token: Tensor, dtype: torch.dtype) -> Tensor:
    """(16 * high + low + assist) * per_token, each step rounded to fp32, then to dtype.

    high, low [tokens, out] fp32, assist [out], or [tokens, out] where each row has its own, per_token [tokens]
    -> [tokens, out].
    """
    return ((high * 16 + low + assist) * per_token.unsqueeze(-1)).to(dtype)
