"""Sizes read off the inside of a site: no reason to refuse it, as a value read outside is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glmfuse import Gain, Kernel, Report, Target, pattern
from tests.support.graphs import Captured, capture, listing, outputs_and_writes, run_stages, same_bits

SIZES = ((3, 8), (5, 4), (2, 9))
Program = Callable[[Tensor], tuple[Tensor, ...]]


@pattern(dims={"x": "A B", "y": "A*B"})
def toy_flat_exp(x: Tensor, y: Tensor) -> Tensor:
    """exp(tanh(x)) in one row, and y on it.  x [a, b], y [a * b] -> [a * b]; the row is where the size appears."""
    return torch.exp(torch.tanh(x).view(-1)) + y


TARGET = Target("toys", {"toy_flat_exp": Kernel(toy_flat_exp.function, gain_fn=lambda _: Gain(0.0, 2.0, "as given"))})


def captured(program: Program) -> Captured:
    x = torch.randn(SIZES[0])
    for dim in (0, 1):
        torch._dynamo.mark_dynamic(x, dim)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        (graph,) = capture(program, x)
    assert any("sym_size" in line for line in listing(graph.graph_module.graph))
    return graph


def feeding(x: Tensor) -> tuple[Tensor, ...]:
    """The size goes into an argument of the site that it is read in, and is returned."""
    row = torch.tanh(x).view(-1)
    wide = x[0, :1].expand_as(row)
    return torch.exp(row) + wide, wide.unsqueeze(0).expand(2, -1).sin()


def twice(x: Tensor) -> tuple[Tensor, ...]:
    """The second site takes its size from inside the first."""
    first, second = torch.tanh(x).view(-1), torch.tanh(x + 1).view(-1)
    wide = x[0, :1].expand_as(first)
    return torch.exp(first) + x.view(-1), torch.exp(second) + wide


def halved(x: Tensor) -> tuple[Tensor, ...]:
    """The size is more than a product."""
    return feeding(x[::2])


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("program", "sites"), [(feeding, 1), (halved, 1), (twice, 2)])
def test_a_size_read_inside_stays_what_it_is(program: Program, sites: int, verify: bool) -> None:
    graph, report = captured(program), Report()
    module = graph.module()
    found = run_stages(module, patterns=(toy_flat_exp,), targets=[TARGET], verify=verify, report=report)
    assert found.count("chosen")["toy_flat_exp"] == sites
    left = " ".join(listing(module.graph))
    assert verify or not any(name in left for name in ("sym_size", "tanh"))
    for size in SIZES:
        inputs = [*size, torch.randn(size)]
        assert same_bits(outputs_and_writes(module, inputs), outputs_and_writes(graph.module(), inputs))


def also_read(x: Tensor) -> tuple[Tensor, ...]:
    row = torch.tanh(x).view(-1)
    return torch.exp(row) + x[0, :1].expand_as(row), row.sum()


def sized_by_data(x: Tensor) -> tuple[Tensor, ...]:
    row = torch.tanh(x[x > 0].repeat(2, 1)).view(-1)
    return (torch.exp(row) + x[0, :1].expand_as(row),)


@pytest.mark.parametrize("program", [also_read, sized_by_data])
def test_a_value_read_outside_still_refuses_the_site(program: Program) -> None:
    """Its sum needs the value; a size that depends on data is no expression of the arguments."""
    graph = captured(program)
    report = run_stages(graph.module(), patterns=(toy_flat_exp,), targets=[TARGET])
    (row,) = [row for row in report.rows() if row.pattern == "toy_flat_exp"]
    assert (row.status, row.code) == ("matched", "escape")
