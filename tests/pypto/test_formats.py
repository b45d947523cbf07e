"""Weights in NZ, in PyPTO's interpreter on a CPU: the same bits as in ND, with all passes compiled.

The interpreter is told the format that the tensor would have on an NPU, and given the numbers in that order.
Nothing here ran on an NPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.formats import in_nz
from glmfuse.lowering.pypto.launch.launch import checked, request_of
from glmfuse.lowering.pypto.process import Mode, run
from glmfuse.lowering.pypto.registry import KERNELS
from tests.support.graphs import same_bits

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]


@pytest.mark.parametrize("tokens", [1, 8, 33])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", "tiny"),
        ("swiglu_mlp", "tiny"),
        ("norm_qkv_rope", "tiny"),
        ("gate_topk", "glm-4.5/tp8"),
        ("norm_qkv_rope_w8a8", "tiny"),
        ("swiglu_mlp_w8a8_dynamic", "tiny"),
        ("quant_linear", "tiny"),
    ],
)
def test_a_weight_in_nz_gives_the_bits_of_one_in_nd(name: str, shape: str, tokens: int) -> None:
    values = arguments(name, geometry(shape), tokens, torch.bfloat16)
    if name == "gate_topk":
        values["w"] = values["w"].bfloat16()  # PyPTO multiplies fp32, as the family's routers are, in ND alone
    launch = KERNELS[name].launch(ASCEND_910B, **values)
    request = request_of(launch, Mode.COMPILE)
    expected = checked(run(request), launch, Mode.COMPILE).tensors
    inputs = tuple(in_nz(x) if place in launch.matrices else x for place, x in enumerate(request.inputs))
    assert launch.matrices
    found = checked(run(replace(request, inputs=inputs, nz=launch.matrices)), launch, Mode.COMPILE).tensors
    assert same_bits(found, expected)
    taken_for_nd = checked(run(replace(request, inputs=inputs)), launch, Mode.COMPILE).tensors
    assert not same_bits(taken_for_nd, expected)


def test_nz_is_columns_of_fractals() -> None:
    matrix = torch.arange(32 * 48).view(32, 48).to(torch.float16)
    found = in_nz(matrix).view(3, 2, 16, 16)
    for column in range(3):
        for row in range(2):
            fractal = matrix[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
            assert torch.equal(found[column, row], fractal)
