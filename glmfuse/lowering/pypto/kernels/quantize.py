"""Rows as int8 or float8: by a scale that is known, or by the largest number of each."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.codes import by_factor, by_largest
from glmfuse.lowering.pypto.kernels.vector import Block, scope, widened


def build(hidden: int, block: int, rows: int, width: int, channels: int, codes: str, dtypes: tuple[str, str]) -> Any:
    """The kernel of `quantize`, with channels, or without of `dynamic_quantize` and `fp8_quantize`.

    x [tokens, hidden], factor and offset [1, channels] -> codes [tokens, hidden]; or x -> codes, and the scales
    [tokens, 1]. block: tokens of a round. rows, width: the vector tile. dtypes: of x and of the factor.
    """
    element, number = (getattr(pypto, dtype) for dtype in dtypes)
    code = getattr(pypto, codes)

    if channels:

        @pypto.frontend.jit()
        def quantize(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            factor: pypto.Tensor([], number),
            offset: pypto.Tensor([], number),
            y: pypto.Tensor([pypto.DYNAMIC, ...], code),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                at.put(by_factor(at, widened(at.of(x, hidden)), factor, offset, channels), y, 0)
                scope(-1)

    else:

        @pypto.frontend.jit()
        def quantize(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], code),
            scale: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                rounded, per_token = by_largest(at, widened(at.of(x, hidden)), codes)
                at.put(rounded, y, 0)
                at.put(per_token, scale, 0)
                scope(-1)

    return quantize
