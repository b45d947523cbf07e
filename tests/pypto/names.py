"""Which kernels the chip takes that the tests are made for, and which not."""

from __future__ import annotations

import torch

from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import geometry, layouts
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal


def _is_taken(name: str) -> bool:
    return refusal(ASCEND_910B, KERNELS[name], name, layouts(name, geometry("tiny"), 5, torch.bfloat16)) is None


TAKEN = tuple(name for name in KERNELS if _is_taken(name))
FLOAT8 = tuple(name for name in KERNELS if "fp8" in name)
"""Of another SoC: this one has no float8."""
