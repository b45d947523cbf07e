"""npu_linear: a linear layer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tests.offline_ascend.standin.references.reference import Reference


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input [..., in], weight [out, in], bias [out] -> [..., out], rounded once."""
    return functional.linear(input, weight, bias)


OPS = {"npu_linear": Reference(linear)}
