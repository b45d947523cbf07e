"""Kernels that compile at their first call are called once for each set of sizes before the engine is.

The engine here is the graph itself, and the kernels count their calls; nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd.utils import make_boxed_func

from glmfuse import Gain, Kernel, Target, pattern
from glmfuse.capture import capture_model
from glmfuse.lowering.rehearse import rehearsed
from tests.support.graphs import capture, run_stages
from tests.test_cache_update import POSITIONS, cache, rows, step


@pattern(dims={"x": "... H", "w": "H"})
def scaled_tanh(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """w * tanh(scale * x)."""
    return w * torch.tanh(scale * x)


Calls = list[tuple[tuple[int, ...], tuple[int, ...], bool]]


@pytest.fixture
def calls() -> Calls:
    """Shape and strides of x in each call, and whether it held zeros alone."""
    return []


@pytest.fixture
def target(calls: Calls) -> Target:
    def kernel(x: Tensor, w: Tensor, scale: float) -> Tensor:
        calls.append((tuple(x.shape), x.stride(), not x.any()))
        return w * torch.tanh(scale * x)

    return Target("counting", {"scaled_tanh": Kernel(kernel, gain_fn=lambda _: Gain(1, 2, "test"), compiles=True)})


def twice(x: Tensor, other: Tensor, w: Tensor) -> Tensor:
    """Two sites of one shape, one of another."""
    first = w * torch.tanh(0.5 * x)
    return (w * torch.tanh(0.5 * first)).sum() + (w * torch.tanh(0.5 * other)).sum()


def inputs(rows: int, others: int) -> list[Tensor]:
    return [torch.randn(rows, 8), torch.randn(others, 2, 8), torch.randn(8)]


def compiled(function: Callable[..., Any], target: Target, **options: Any) -> tuple[Callable[..., Any], list[int]]:
    """The fused graphs behind a rehearsal, and a list that grows with each call of the engine."""
    engine: list[int] = []

    def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        run_stages(gm, targets=(target, "reference"), patterns=(scaled_tanh,))
        run = make_boxed_func(gm.forward)

        def call(args: list[Any]) -> Any:
            engine.append(len(args))
            return run(args)

        call._boxed_call = True  # type: ignore[attr-defined]
        return rehearsed(gm, call)

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return capture_model(gm, example_inputs, compiler, compiler)

    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, **options), engine


def test_each_kind_of_call_is_rehearsed_once_and_on_zeros(target: Target, calls: Calls) -> None:
    given = inputs(5, 3)
    run, engine = compiled(twice, target)
    assert torch.equal(run(*given), twice(*given))
    assert [call for call in calls if call[2]] == calls[:2]
    assert sorted(calls[:2]) == [((3, 2, 8), (16, 8, 1), True), ((5, 8), (8, 1), True)]
    assert sorted(call[0] for call in calls[2:]) == [(3, 2, 8), (5, 8), (5, 8)]
    assert len(engine) == 1
    assert torch.equal(run(*given), twice(*given))
    assert sum(zeros for *_, zeros in calls) == 2


def test_new_sizes_are_rehearsed_anew_and_known_ones_are_not(target: Target, calls: Calls) -> None:
    run, engine = compiled(twice, target, dynamic=True)
    for count, others, expected in [(5, 3, 2), (6, 3, 2), (5, 3, 0), (6, 4, 2), (6, 3, 0)]:
        given = inputs(count, others)
        calls.clear()
        assert torch.equal(run(*given), twice(*given))
        rehearsals = [call[0] for call in calls if call[2]]
        assert len(rehearsals) == expected
        assert not rehearsals or sorted(rehearsals) == [(others, 2, 8), (count, 8)]
    assert len(engine) == 5


def test_sizes_are_worked_out_from_the_arguments(target: Target, calls: Calls) -> None:
    """The op's rows are a sum and a product of sizes that are no argument's own."""

    def joined(x: Tensor, other: Tensor, w: Tensor) -> Tensor:
        both = torch.cat([x, other.reshape(-1, 8)])
        return w * torch.tanh(0.25 * both)

    run, _ = compiled(joined, target, dynamic=True)
    for count, others in [(5, 3), (7, 4)]:
        given = inputs(count, others)
        calls.clear()
        assert torch.equal(run(*given), joined(*given))
        assert [call[0] for call in calls] == [(count + 2 * others, 8)] * 2


def test_strides_are_those_of_the_call(target: Target, calls: Calls) -> None:
    def turned(x: Tensor, w: Tensor) -> Tensor:
        return w * torch.tanh(0.5 * x)

    x, w = torch.randn(8, 5).t(), torch.randn(8)
    run, _ = compiled(turned, target)
    run(x, w)
    assert [call[1] for call in calls] == [(1, 5), (1, 5)]


def test_a_cache_is_not_touched_by_the_rehearsal() -> None:
    calls: list[float] = []

    def write(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        calls.append(rows.abs().sum().item())
        return cache.index_copy_(2, positions, rows).add_(1)  # not idempotent: a second call would show

    kernel = Kernel(write, gain_fn=lambda _: Gain(1, 2, "test"), overwrites=True, compiles=True)
    run, _ = compiled(step, Target("writing", {"cache_update": kernel}))
    k, new = cache(), rows()
    expected = k.clone().index_copy(2, POSITIONS, new.sin()) + 1
    run(k, new)
    assert torch.equal(k, expected)
    assert len(calls) == 2
    assert calls[0] == 0 != calls[1]


def test_without_such_a_kernel_the_engine_is_called_at_once(target: Target) -> None:
    def call(args: list[Any]) -> Any:
        return args

    (found,) = capture(twice, *inputs(5, 3))
    assert rehearsed(found.module(), call) is call
