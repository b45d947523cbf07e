"""Kernels of the target `aclnn` on the fake npu:0, where the references compute: no chip has run any of this."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse.capture import as_tuple
from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.lowering.aclnn.target import ACLNN
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2, allowed
from glmfuse.lowering.verify import _in_one_order, _steps, difference
from glmfuse.matching.pattern import Variant
from glmfuse.patterns import BY_NAME
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import ALL, on_npu, taken, trace_of

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DRAWS = 20
CASES = [
    pytest.param(name, variant, dtype, id=f"{name}-{variant}-{dtype}".replace("torch.", ""))
    for name, variant in ALL
    for dtype in DTYPES
    if taken(name, variant, dtype)
]


def errors(name: str, variant: Variant, dtype: torch.dtype, seed: int) -> list[tuple[torch.dtype, float]]:
    """Dtype and relative L2 error of each output, between the kernel on the npu and the pattern on the CPU."""
    values = arguments(name, variant, dtype, seed)
    found = [output.cpu() for output in as_tuple(KERNELS[name].fn(**on_npu(values)))]
    expected = as_tuple(BY_NAME[name].function(**values))
    is_unordered = BY_NAME[name].unordered
    pairs = zip(_in_one_order(found, is_unordered), _in_one_order(expected, is_unordered), strict=True)
    return [(theirs.dtype, difference(ours, theirs)[1]) for ours, theirs in pairs]


@pytest.mark.parametrize(("name", "variant", "dtype"), CASES)
def test_the_references_compute_the_pattern(name: str, variant: Variant, dtype: torch.dtype) -> None:
    limits = KERNEL_RELATIVE_L2 if KERNELS[name].rounds_alike else None
    for seed in range(5):
        for stored, error in errors(name, variant, dtype, seed):
            assert error <= (allowed(stored) if limits is None else limits.get(stored, 0.0)), (seed, stored)


@pytest.mark.parametrize(("name", "variant", "dtype"), CASES)
def test_torch_npus_meta_kernels_give_the_patterns_layout(name: str, variant: Variant, dtype: torch.dtype) -> None:
    sizes = set()
    for seed in range(DRAWS):
        values = arguments(name, variant, dtype, seed)
        sizes.add(tuple(value.shape for value in values.values() if isinstance(value, Tensor)))
        body = trace_of(name, variant, values).of(KERNELS[name].fn)
        assert not isinstance(body, str), (seed, body)
        called = {node.target for node in body.graph.nodes if str(node.target).startswith("npu.")}
        assert {op._schema.name.removeprefix("npu::") for op in called} == set(KERNELS[name].ops)
    assert len(sizes) > DRAWS // 2


@pytest.mark.parametrize(("name", "variant", "dtype"), CASES)
def test_what_runs_lies_as_it_was_traced(name: str, variant: Variant, dtype: torch.dtype) -> None:
    values = arguments(name, variant, dtype, 1)
    expected = trace_of(name, variant, values).outputs
    found = as_tuple(KERNELS[name].fn(**on_npu(values)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (tuple(ours.shape), ours.dtype, ours.device.type) == (theirs.shape, theirs.dtype, theirs.device.type)
        steps = tuple(step for size, step in zip(theirs.shape, theirs.stride, strict=True) if size != 1)
        assert _steps(ours) == steps


@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if not kernel.rounds_alike])
def test_what_is_said_to_round_otherwise_does(name: str) -> None:
    """Else the kernel could be held to the closer tolerance."""
    found = [
        error
        for case in CASES
        if case.values[0] == name and case.values[2] is torch.bfloat16
        for seed in range(5)
        for _, error in errors(name, case.values[1], torch.bfloat16, seed)
    ]
    assert max(found) > KERNEL_RELATIVE_L2[torch.bfloat16]


def test_nothing_else_of_the_table_is_left_out() -> None:
    """Weights that are not renormalised, one query under a triangle, and attention in fp32."""
    assert {name for name, _ in ALL} == set(KERNELS) == set(ACLNN.kernels)
    cases = {case.values for case in CASES}
    for name, variant in ALL:
        flags, one = dict(variant.flags), dict(variant.sizes).get("S") == 1
        never = not flags.get("renormalize", True) or (flags.get("causal", False) and one)
        for dtype in DTYPES:
            is_out = never or (name.endswith("attention") and dtype is torch.float32)
            assert ((name, variant, dtype) in cases) is not is_out
