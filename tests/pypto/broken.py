"""Kernels that fail, for the tests of what runs them."""

from typing import Any

import pypto


def build_too_wide(width: int) -> Any:
    """One row of this many fp32 does not fit the unified buffer: a pass refuses it."""

    @pypto.frontend.jit()
    def too_wide(x: pypto.Tensor([], pypto.DT_FP32), y: pypto.Tensor([], pypto.DT_FP32)):
        pypto.set_vec_tile_shapes(1, width)
        y[0:, 0:] = pypto.mul(pypto.exp(x), pypto.exp(pypto.mul(x, 2.0)))

    return too_wide


def build_raising() -> Any:
    """Fails before there is a kernel."""
    raise ValueError("no such kernel")
