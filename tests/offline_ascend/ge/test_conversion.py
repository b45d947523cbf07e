"""torchair's real conversion, up to the GE graph that CANN would be given. That CANN accepts it is not shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.offline_ascend.standin.ge_graph import ge_graph, operators


def test_plain_operators_are_converted() -> None:
    def gated(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ w)

    found = operators(ge_graph(gated, torch.randn(4, 8).npu(), torch.randn(8, 8).npu()))
    assert found[-1] == "Swish"
    assert any("MatMul" in op for op in found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_fused_operators_stay_one(dynamic: bool) -> None:
    def normed(x: Tensor, g: Tensor) -> Tensor:
        return torch.ops.npu.npu_swiglu(torch.ops.npu.npu_rms_norm(x, g)[0])

    x, g = torch.randn(4, 8, dtype=torch.bfloat16).npu(), torch.randn(8, dtype=torch.bfloat16).npu()
    found = operators(ge_graph(normed, x, g, dynamic=dynamic))
    assert [op for op in found if op in ("RmsNorm", "SwiGlu")] == ["RmsNorm", "SwiGlu"]


def test_an_operator_without_a_converter_is_refused_by_torchair() -> None:
    def put(x: Tensor, at: Tensor, y: Tensor) -> Tensor:
        return x.index_put((at,), y)

    x, at, y = torch.randn(5, 3).npu(), torch.tensor([1, 4]).npu(), torch.randn(2, 3).npu()
    with pytest.raises(Exception, match="index_put.*converter is not implemented"):
        ge_graph(put, x, at, y)
