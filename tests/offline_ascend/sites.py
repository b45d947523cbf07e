"""Sites of patterns on the fake npu:0, made of arguments and not of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.capture import as_tuple
from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.matching.examples import variants
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import Variant
from glmfuse.matching.select import Request
from glmfuse.matching.site_trace import SiteTrace, trace_site
from glmfuse.options import LAUNCH_US
from glmfuse.patterns import BY_NAME
from tests.offline_ascend.drawn import arguments

NPU = torch.device("npu", 0)


def _variants(name: str) -> list[Variant]:
    """How a pattern is called, in its own spelling and the model's dtype."""
    return [found for found in variants(BY_NAME[name]) if not found.spelling and not found.dtypes]


def taken(name: str, variant: Variant, dtype: torch.dtype) -> bool:
    """Whether the kernel of `aclnn` takes what is drawn for this variant."""
    return KERNELS[name].limits(request_of(name, variant, arguments(name, variant, dtype, 0))) is None


def called(pattern: str, scalars: Mapping[str, Any]) -> Callable[..., tuple[Tensor, ...]]:
    """The kernel as a function of its tensors alone."""

    def call(**tensors: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(KERNELS[pattern].fn(**tensors, **scalars))

    return call


def on_npu(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments on the fake npu, strides kept."""
    return {name: _moved(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _moved(value: Tensor) -> Tensor:
    place = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=NPU)
    return place.copy_(value)


def trace_of(pattern: str, variant: Variant, values: Mapping[str, Any]) -> SiteTrace:
    """The pattern traced on fake npu tensors that lie as these do."""
    layouts = _layouts(values)
    scalars = {name: value for name, value in values.items() if value is not None and name not in layouts}
    return trace_site(BY_NAME[pattern], variant, layouts, scalars)


def request_of(
    pattern: str, variant: Variant, values: Mapping[str, Any], compute_nodes: int = 9, outputs: tuple[Layout, ...] = ()
) -> Request:
    """What selection would ask a kernel about a site with these arguments."""
    layouts = _layouts(values)
    scalars = {name: value for name, value in values.items() if value is not None and name not in layouts}
    return Request(BY_NAME[pattern], variant, layouts, scalars, outputs, compute_nodes, compute_nodes, LAUNCH_US)


def _layouts(values: Mapping[str, Any]) -> dict[str, Layout]:
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: Layout(tuple(t.shape), t.stride(), t.dtype, NPU) for name, t in tensors.items()}


ALL = [(name, variant) for name in KERNELS for variant in _variants(name)]
VARIANTS = [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in ALL if taken(*each, torch.bfloat16)]
"""Patterns that `aclnn` has kernels for, in each variant; and those that the kernels take in bf16."""
