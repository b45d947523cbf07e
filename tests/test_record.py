"""Functions noted operator by operator: what is noted is the aten graph, and what cannot be is left to the tracer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch

from glmfuse.canonicalize import canonicalize
from glmfuse.capture import Fresh, as_tuple, trace
from glmfuse.matching.record import record
from tests.support.terms import lying, spelled


def fake(*shape: int) -> torch.Tensor:
    return Fresh().empty(shape, None, torch.float32, torch.device("cpu"))


def in_place(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[0].mul_(2)
    return y.add_(x)


def several(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    values, ids = torch.topk(x, 2)
    first, _ = x.split([1, 2], dim=-1)
    return values, ids, first


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "a composite": lambda x: torch.nn.functional.linear(x, x).softmax(-1).reshape(-1),
    "made of numbers": lambda x: x + torch.arange(3, device=x.device) + torch.zeros(3),
    "views": lambda x: x.t()[1:].contiguous().to(torch.bfloat16),
    "in place": in_place,
    "several results": several,
    "its argument": lambda x: (x, x + 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_graph_that_is_traced(name: str) -> None:
    x = fake(3, 3)

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*as_tuple(FUNCTIONS[name](x)), x)

    recorded = record(function, (x,))
    assert recorded is not None
    ours, theirs = (canonicalize(graph).outputs for graph in (recorded, trace(function, (x,)).graph))
    assert (spelled(ours), lying(ours)) == (spelled(theirs), lying(theirs))


def test_sizes_that_vary_are_left_to_the_tracer() -> None:
    size = sympy.Symbol("s0", integer=True, positive=True)
    x = Fresh({size: 8}).empty((size, 4), None, torch.float32, torch.device("cpu"))
    assert record(lambda x: x.reshape(-1), (x,)) is None
    assert record(lambda x: x.new_zeros(x.shape[0]), (x,)) is None


def test_constants_are_left_to_the_tracer() -> None:
    held = torch.randn(3)
    assert record(lambda x: x + torch.tensor([1.0, 2.0, 3.0]), (fake(3),)) is None
    assert record(lambda x: x * held.to(x.device), (fake(3),)) is None


def test_values_that_are_read_are_left_to_the_tracer() -> None:
    assert record(lambda x: x * x.sum().item(), (fake(3),)) is None


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="broadcast"):
        record(lambda x: x + torch.zeros(5), (fake(3),))
