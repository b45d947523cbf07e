"""How far a fused site may be from the subgraph that it replaces: one table, each row with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

RELATIVE_L2: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {
        # Sums of up to 12288 products in another order: about sqrt(12288) roundings of 2^-24 each.
        torch.float32: 1e-5,
        # One rounding to 11 bits where the other side has two: 2^-11, with room for a second.
        torch.float16: 1e-3,
        # One rounding to 8 bits where the other side has two: 2^-8, with room for a second.
        torch.bfloat16: 8e-3,
        # float64 only serves as an oracle; the sums as in float32, with 53 bits.
        torch.float64: 1e-13,
    }
)


QUANTISED_AGAIN: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {
        # Two layers with int8 rows between them, one side of which keeps fp32 where the other rounds to the dtype.
        # A code of around 35 moves by 35 * 2^-9, so that one in fourteen flips: sqrt(1 / 14) / 35, and the roundings.
        # e4m3 has a code of every sixteenth: one in 32 flips, sqrt(1 / 32) / 16.
        torch.bfloat16: 2e-2,
        # The same with 35 * 2^-12: one in 117 flips.
        torch.float16: 5e-3,
    }
)

SPLIT_INT4: Final = 3e-3
"""int8 rows times int4 on an NPU: each half of a row leaves the cube as fp16, one of them 16 times over, and what they
lack is added after. By that formula a product is 2e-4 off, and rounded to bf16 on both sides 1e-3; of a few outputs
three times that."""


KERNEL_RELATIVE_L2: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {
        # A kernel that rounds where its pattern rounds differs where two sums of another order fall on two
        # sides of a rounding boundary: a few elements in a thousand, by one unit in the last place.
        torch.bfloat16: 2e-4,
        torch.float16: 1e-4,
        # Sums in another order, nothing else.
        torch.float32: 1e-6,
    }
)


REQUANTISED_RELATIVE_L2: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {
        # What is rounded otherwise by a part p of itself and then made int8 is in another step as often as p times its
        # steps: a mean square of p * E|steps|. A row with its largest number at 4 RMS has 32 steps RMS and 25 in the
        # mean, so with p = 2^-8 it is sqrt(25 / 256) / 32 = 1e-2 beside the 8e-3 of the results' own roundings.
        torch.bfloat16: 1.3e-2,
        # The same with p = 2^-11: sqrt(25 / 2048) / 32 = 3.5e-3 beside 1e-3.
        torch.float16: 3.7e-3,
    }
)


INT8_STEPS_APART: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {
        # Two formulas of int8 rows (127 / max as the factor, max / 127.5 as the scale) round the same numbers on grids
        # that slide past each other: two errors, each uniform in a step of 1, so of variance 1/12. Small numbers are
        # rounded alike, which only brings the two nearer. In RMS steps of a row; weights are the same.
        torch.float32: 6**-0.5,
        # compressed-tensors also rounds x / scale to 8 bits: a third error, uniform in half a step where it is largest.
        torch.bfloat16: (1 / 6 + 1 / 48) ** 0.5,
    }
)


FP8_RELATIVE_APART: Final = (2 * 2.0**-8 / 3) ** 0.5
"""float8_e4m3fn rows by a scale that is rounded to bf16, and by one that is not.

The grid slides, so there are two roundings, each uniform in at most 2^-4 of a number to both sides: variance 2^-8 / 3.
"""


def allowed(dtype: torch.dtype) -> float:
    """The largest relative L2 error for a dtype; 0 for integers and booleans, which are exact."""
    return RELATIVE_L2.get(dtype, 0.0)
