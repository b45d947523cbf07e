"""RMSNorm, and with a residual the sum before it, rounding where the pattern function rounds."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto


def build(hidden: int, block: int, rows: int, width: int, eps: float, dtype: str) -> Any:
    """The kernel of `rms_norm`: x [tokens, hidden], w [1, hidden] fp32 -> y [tokens, hidden].

    block: tokens of a round. rows, width: the vector tile.
    """
    element = getattr(pypto, dtype)

    @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
    def rms_norm(
        x: pypto.Tensor([pypto.DYNAMIC, ...], element),
        w: pypto.Tensor([], pypto.DT_FP32),
        y: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            valid = (tokens - i * block).min(block)
            pypto.set_vec_tile_shapes(rows, width)
            part = pypto.view(x, [block, hidden], [i * block, 0], valid_shape=[valid, hidden])
            pypto.set_pass_options(sg_set_scope=1)  # one task for each vector tile
            y[i * block :, 0:] = normalise(part, w, hidden, eps, element)
            pypto.set_pass_options(sg_set_scope=-1)

    return rms_norm


def normalise(x: Any, weight: Any, hidden: int, eps: float, element: Any) -> Any:
    """Round(x / rms) * w, rounded: the pattern rounds to the storage dtype before the weight and after it.

    weight comes in fp32: a cast that several tiles share would be a task and a stage of its own.
    """
    wide = pypto.cast(x, pypto.DT_FP32)
    mean = pypto.sum(pypto.mul(pypto.mul(wide, wide), 1.0 / hidden), -1, keepdim=True)
    scaled = pypto.div(wide, pypto.sqrt(pypto.add(mean, eps)))
    rounded = pypto.cast(pypto.cast(scaled, element), pypto.DT_FP32)
    return pypto.cast(pypto.mul(rounded, weight), element)
