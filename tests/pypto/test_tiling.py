"""From shapes to tiles: every kernel has a launch wherever its limits let it, and no tile exceeds the chip."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import DEVICES, MODELS, geometry, layouts
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal
from glmfuse.lowering.pypto.tiling import FP32, cube_tile

GEOMETRIES = {geometry("tiny"), *(geometry(f"{model}/tp{n}") for model in MODELS if model != "tiny" for n in DEVICES)}
"""Of each shape once: 4.6 and 4.7 have the sizes of 4.5."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_every_shape_of_the_family_has_a_launch_or_a_reason(name: str, dtype: torch.dtype) -> None:
    for at, tokens in product(GEOMETRIES, (1, 8, 33, 512)):
        values = layouts(name, at, tokens, dtype)
        reason = refusal(ASCEND_910B, KERNELS[name], name, values)
        if reason is None:
            launch = KERNELS[name].launch(ASCEND_910B, **values)
            assert all(tensor.is_contiguous() for tensor in launch.inputs)
        else:
            assert any(character.isdigit() for character in reason), reason


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("k", [16, 88, 100, 1536, 5120, 12288])
def test_a_cube_tile_fits_every_buffer(k: int, share: float, itemsize: int) -> None:
    chip = replace(ASCEND_910B, l1_share=share)
    for m, n in product((1, 7, 32, 128), (8, 160, 1792, 24576)):
        tile = cube_tile(chip, m, k, n, itemsize)
        assert (tile.m * tile.k_a + tile.n * tile.k_b) * itemsize <= chip.l1 * share
        assert max(tile.m, tile.n) * tile.k_l0 * itemsize <= chip.l0a
        assert tile.m * tile.n * FP32 <= chip.l0c
        assert tile.k_a % tile.k_b == tile.k_b % tile.k_l0 == 0
