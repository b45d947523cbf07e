"""Kernels of `aclnn` through the real npugraph_ex: captured and replayed on the fake npu:0, over the references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.matching.pattern import Variant
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import VARIANTS, called, on_npu
from tests.offline_ascend.standin.log import record
from tests.support.graphs import same_bits


@pytest.mark.usefixtures("out_operators_unchecked")
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_capture_and_replay_give_the_bits_of_eager_calls(name: str, variant: Variant) -> None:
    drawn = arguments(name, variant, torch.bfloat16, 1)
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
