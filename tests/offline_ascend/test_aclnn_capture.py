"""Kernels of `aclnn` through the real npugraph_ex: captured and replayed on the fake npu:0, over the references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.matching.examples import variants
from glmfuse.matching.pattern import Variant
from glmfuse.patterns import BY_NAME
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import on_npu
from tests.offline_ascend.standin.log import record
from tests.support.graphs import same_bits

BF16 = torch.bfloat16
CASES = [
    pytest.param(name, variant, id=f"{name}-{variant}")
    for name in KERNELS
    for variant in variants(BY_NAME[name])
    if not variant.spelling and not variant.dtypes and dict(variant.flags).get("renormalize", True)
]


def called(name: str, scalars: dict[str, Any]) -> Callable[..., tuple[Tensor, ...]]:
    """The kernel as a function of its tensors alone."""

    def call(**tensors: Tensor) -> tuple[Tensor, ...]:
        result = KERNELS[name].fn(**tensors, **scalars)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return call


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_capture_and_replay_give_the_bits_of_eager_calls(name: str, variant: Variant) -> None:
    drawn = arguments(name, variant, BF16, 1)
    tensors = on_npu({key: value for key, value in drawn.items() if isinstance(value, Tensor)})
    call = called(name, {key: value for key, value in drawn.items() if key not in tensors})
    compiled = torch.compile(call, backend="npugraph_ex", fullgraph=True, dynamic=False)
    for turn in range(3):
        for value in tensors.values():
            value.copy_(value.flip(0).roll(1, -1))  # other numbers of the same kind, for the replay to read
        expected = call(**tensors)
        with record() as seen:
            found = compiled(**tensors)
        assert same_bits([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in expected])
        captured = {op.removeprefix("npu.").split(".")[0] for op in seen.captured}
        assert (set(KERNELS[name].ops) <= captured) is (turn == 0)
