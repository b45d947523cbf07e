"""RMSNorm, and with a residual the sum before it, rounding where the pattern function rounds."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, rounded, scope, widened


def build(hidden: int, block: int, rows: int, width: int, eps: float, dtype: str, has_residual: bool) -> Any:
    """The kernel of `rms_norm`: x [tokens, hidden], w [1, hidden] -> y [tokens, hidden].

    With a residual that of `add_rms_norm`: x, residual, w -> y, and the sum. block: tokens of a round.
    rows, width: the vector tile.
    """
    element = getattr(pypto, dtype)

    if has_residual:

        @pypto.frontend.jit()
        def rms_norm(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
            total: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)  # one task for each vector tile
                both = add(at.of(x, hidden), at.of(residual, hidden), element)
                at.put(both, total, 0)
                at.put(normalise(both, at.spread(w, hidden), hidden, eps, element), y, 0)
                scope(-1)

    else:

        @pypto.frontend.jit()
        def rms_norm(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                at.put(normalise(at.of(x, hidden), at.spread(w, hidden), hidden, eps, element), y, 0)
                scope(-1)

    return rms_norm


def add(x: Any, residual: Any, element: Any) -> Any:
    """The residual sum, rounded."""
    return pypto.cast(pypto.add(widened(x), widened(residual)), element)


def normalise(x: Any, weight: Any, width: int, eps: float, element: Any) -> Any:
    """Round(x / rms) * w, rounded: the pattern rounds to the storage dtype before the weight and after it.

    Over the last axis, of `width`; the weight in fp32, spread over the other axes.
    """
    wide = widened(x)
    mean = pypto.sum(pypto.mul(pypto.mul(wide, wide), 1.0 / width), -1, keepdim=True)
    scaled = pypto.div(wide, pypto.sqrt(pypto.add(mean, eps)))
    return pypto.cast(pypto.mul(rounded(scaled, element), weight), element)
