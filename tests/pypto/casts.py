"""Kernels that convert to float8 and from it and multiply it, to see what PyPTO's interpreter makes of that."""

from typing import Any

import pypto


def build_there_and_back(dtype: str, mode: str, saturation: str) -> Any:
    """x [rows, 64] of dtype as float8 in a cast mode, as y, fp32."""
    element, how = getattr(pypto, dtype), getattr(pypto.CastMode, mode)
    saturated = getattr(pypto.SaturationMode, saturation)

    @pypto.frontend.jit()
    def there_and_back(x: pypto.Tensor([], element), y: pypto.Tensor([], pypto.DT_FP32)):
        pypto.set_vec_tile_shapes(4, 64)
        y[0:, 0:] = pypto.cast(pypto.cast(x, pypto.DT_FP8E4M3, how, satmode=saturated), pypto.DT_FP32)

    return there_and_back


def build_back() -> Any:
    """x [rows, 64] float8 as y, fp32."""

    @pypto.frontend.jit()
    def back(x: pypto.Tensor([], pypto.DT_FP8E4M3), y: pypto.Tensor([], pypto.DT_FP32)):
        pypto.set_vec_tile_shapes(4, 64)
        y[0:, 0:] = pypto.cast(x, pypto.DT_FP32)

    return back


def build_product() -> Any:
    """x [16, 64] and w [64, 32] float8, their product y, fp32."""

    @pypto.frontend.jit()
    def product(
        x: pypto.Tensor([], pypto.DT_FP8E4M3), w: pypto.Tensor([], pypto.DT_FP8E4M3), y: pypto.Tensor([], pypto.DT_FP32)
    ):
        pypto.set_cube_tile_shapes([16, 16], [64, 64], [32, 32])
        y[0:, 0:] = pypto.matmul(x, w, pypto.DT_FP32)

    return product
