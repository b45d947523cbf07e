"""Functions noted operator by operator: what is noted is the aten graph, and what cannot be is left to the tracer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx

from glmfuse.canonicalize import INPUT, Term, canonicalize
from glmfuse.capture import Fresh, trace
from glmfuse.matching.record import record
from glmfuse.matching.traced import live_terms


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


def terms(graph: fx.Graph) -> list[tuple[str, str]]:
    """The live terms in their order, and how each lies."""
    canonical = canonicalize(graph)
    number = {term: f"%{index}" for index, term in enumerate(live_terms(canonical.outputs))}

    def show(arg: Any) -> str:
        if isinstance(arg, tuple):
            return f"({', '.join(map(show, arg))})"
        return number[arg] if isinstance(arg, Term) else repr(arg)

    return [(f"{term} {show(() if term.op is INPUT else term.args)}", repr(term.val)) for term in number]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_graph_that_is_traced(name: str) -> None:
    x = fake(3, 3)

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = FUNCTIONS[name](x)
        return result if isinstance(result, tuple) else (result, x)

    recorded = record(function, (x,))
    assert recorded is not None
    assert terms(recorded) == terms(trace(function, (x,)).graph)


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
