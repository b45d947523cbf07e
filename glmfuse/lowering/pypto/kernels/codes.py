"""From numbers to the codes that are multiplied, int8 or float8, and back; rounding where the patterns round."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from functools import reduce
from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, widened

LARGEST = {"DT_INT8": 127.0, "DT_FP8E4M3": 448.0}
"""What the largest number of a row becomes."""

_FINITE = 3.0e38
"""Instead of 127 / 0: codes of a row of zeros are 0 * it, and infinity times zero is no number."""


def by_factor(at: Block, value: Any, factor: Any, offset: Any, channels: int) -> Any:
    """value * factor + offset as int8.  value [size, width] fp32; factor, offset [1, channels] -> [size, width].

    Held to what int8 has before it is rounded: the conversion to int32 wraps beyond it in the interpreter.
    """
    moved = pypto.add(pypto.mul(value, at.spread(factor, channels)), at.spread(offset, channels))
    return to_int8(pypto.clip(moved, -128.0, 127.0))


def by_largest(at: Block, value: Any, codes: str) -> tuple[Any, Any]:
    """value * r as codes and 1 / r, where r is the largest code over the largest number of each row.

    value [size, width] fp32 -> [size, width], [size, 1] fp32.
    """
    factor, scale = inverse_of(at, pypto.amax(pypto.abs(value), -1, True), codes)
    return to_codes(pypto.mul(value, factor), codes), scale


def inverse_of(at: Block, largest: Any, codes: str = "DT_INT8") -> tuple[Any, Any]:
    """What rows are multiplied by to be codes, and its reciprocal, from the largest number of each.  All [size, 1]."""
    factor = pypto.div(at.full(LARGEST[codes], 1), largest)
    return pypto.minimum(factor, _FINITE), pypto.div(at.full(1.0, 1), factor)


def to_codes(value: Any, codes: str) -> Any:
    """The nearest code, halves to the even one; at most the largest."""
    return to_int8(value) if codes == "DT_INT8" else to_float8(value, getattr(pypto, codes))


def to_int8(value: Any) -> Any:
    """The nearest int8, halves to the even one; by way of int32 and fp16, as the vector cores convert."""
    whole = pypto.cast(value, pypto.DT_INT32, pypto.CastMode.CAST_RINT)
    half = pypto.cast(whole, pypto.DT_FP16, pypto.CastMode.CAST_ROUND)
    return pypto.cast(half, pypto.DT_INT8, pypto.CastMode.CAST_TRUNC, satmode=pypto.SaturationMode.ON)


def to_float8(value: Any, code: Any) -> Any:
    """The nearest float8; a product that is rounded to a little more than the largest is no infinity.

    In PyPTO's interpreter every mode makes whole numbers first (docs/pypto_cost_model.md).
    """
    return pypto.cast(value, code, pypto.CastMode.CAST_RINT, satmode=pypto.SaturationMode.ON)


def summed(codes: str) -> Any:
    """What products of codes are summed in."""
    return pypto.DT_INT32 if codes == "DT_INT8" else pypto.DT_FP32


def undone(total: Any, scale: Any, per_token: Any) -> Any:
    """total * scale * per_token in fp32, rounded after each, in this order."""
    value = pypto.mul(widened(total), scale)
    return value if per_token is None else pypto.mul(value, per_token)


def scaled_by(sums: list[Any], scales: list[Any]) -> Any:
    """The sums of groups as fp32, each times its scale, added first to last."""
    parts = [pypto.mul(widened(total), scale) for total, scale in zip(sums, scales, strict=True)]
    return parts[0] if len(parts) == 1 else reduce(pypto.add, parts)
