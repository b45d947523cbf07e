"""Each rewrite: two spellings of one value are one term, and values that differ stay apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from glmfuse.canonicalize import AFTER, Canonical, canonicalize
from glmfuse.canonicalize.rules import RULES
from glmfuse.capture import Fresh, trace
from tests.support.glm import decode_static, tiny
from tests.support.graphs import capture

aten = torch.ops.aten
Function = Callable[..., torch.Tensor]


def terms(function: Callable[..., object], *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Canonical:
    fresh = Fresh()
    fakes = [fresh.empty(shape, None, dtype, torch.device("cpu")) for shape in shapes]
    return canonicalize(trace(function, fakes).graph)


def best(x: torch.Tensor) -> torch.Tensor:
    """Two indices below 4 in each row."""
    return x.topk(2, dim=-1)[1]


def some(x: torch.Tensor) -> torch.Tensor:
    """Five of these, sorted."""
    return best(x).view(-1)[best(x)[0, 0, 0] + torch.arange(5)].sort()[0]


SAME: list[tuple[str, Function, Function]] = [
    ("clone", lambda x, w: x.clone() + 1, lambda x, w: x + 1),
    ("alias and detach", lambda x, w: x.detach() + 1, lambda x, w: x + 1),
    ("view and reshape", lambda x, w: x.view(-1, 4) + 1, lambda x, w: x.reshape(6, 4) + 1),
    ("view of view", lambda x, w: x.view(6, 4).view(24).view(4, 6) + 1, lambda x, w: x.view(4, 6) + 1),
    ("there and back", lambda x, w: x.view(6, 4).view(2, 3, 4) + 1, lambda x, w: x + 1),
    ("unsqueeze", lambda x, w: x.unsqueeze(1) + 1, lambda x, w: x.view(2, 1, 3, 4) + 1),
    ("squeeze", lambda x, w: x.unsqueeze(1).squeeze(1) + 1, lambda x, w: x + 1),
    ("transpose", lambda x, w: x.transpose(0, 1) + 1, lambda x, w: x.permute(1, 0, 2) + 1),
    ("transpose twice", lambda x, w: x.transpose(0, 1).transpose(1, 0) + 1, lambda x, w: x + 1),
    ("t", lambda x, w: w.t() + 1, lambda x, w: w.transpose(0, 1) + 1),
    ("expand to itself", lambda x, w: x.expand(2, -1, 4) + 1, lambda x, w: x + 1),
    ("full slice", lambda x, w: x[:, 0:] + 1, lambda x, w: x + 1),
    ("slice of slice", lambda x, w: x[..., 1:][..., 1:] + 1, lambda x, w: x[..., 2:4] + 1),
    ("every second of a slice", lambda x, w: x[..., 1:][..., 1::2] + 1, lambda x, w: x[..., 2::2] + 1),
    ("split", lambda x, w: x.split([1, 3], -1)[1] + 1, lambda x, w: x[..., 1:] + 1),
    ("chunk", lambda x, w: x.chunk(2, dim=-1)[1] + 1, lambda x, w: x[..., 2:] + 1),
    ("negative dim", lambda x, w: x.mean(-1, keepdim=True), lambda x, w: x.mean(2, keepdim=True)),
    ("cast to its own dtype", lambda x, w: x.to(torch.float32) + 1, lambda x, w: x + 1),
    ("wider and back", lambda x, w: x.double().float() + 1, lambda x, w: x + 1),
    ("cat with nothing", lambda x, w: torch.cat([x, x[..., 4:]], -1) + 1, lambda x, w: x + 1),
    ("linear in rows", lambda x, w: F.linear(x.view(6, 4), w).view(2, 3, 5), lambda x, w: F.linear(x, w)),
    ("clamp of indices", lambda x, w: best(x).clamp(0, 3), lambda x, w: best(x)),
    ("fill past the end", lambda x, w: x[0, :, :2].masked_fill(best(x)[0] >= 4, 0), lambda x, w: x[0, :, :2]),
    ("fill past the end of a row", lambda x, w: w.masked_fill(some(x)[:, None] >= 4, 0), lambda x, w: w),
    ("mm", lambda x, w: torch.mm(x.view(6, 4), w.t()).view(2, 3, 5), lambda x, w: F.linear(x, w)),
]


@pytest.mark.parametrize(("name", "one", "other"), SAME, ids=[case[0] for case in SAME])
def test_two_spellings_are_one_term(name: str, one: Function, other: Function) -> None:
    both = terms(lambda x, w: (one(x, w), other(x, w)), (2, 3, 4), (5, 4))
    first, second = both.outputs[0] if isinstance(both.outputs[0], tuple) else both.outputs
    assert first is second


DIFFERENT: list[tuple[str, Function, Function]] = [
    ("eps", lambda x, w: x + 1e-5, lambda x, w: x + 1e-6),
    ("int and float", lambda x, w: x.pow(2), lambda x, w: x.pow(2.0)),
    ("operand order", lambda x, w: x - w[0], lambda x, w: w[0] - x),
    ("dim", lambda x, w: x.mean(1), lambda x, w: x.mean(2).sum() * x.mean(1)),
    ("keepdim", lambda x, w: x.sum(2, keepdim=True), lambda x, w: x.sum(2).unsqueeze(2) * 1),
    ("slice", lambda x, w: x[..., 1:3], lambda x, w: x[..., 2:4]),
    ("every second, and each", lambda x, w: x[..., 1::2], lambda x, w: x[..., 1:3]),
    ("slice of every second", lambda x, w: x[..., ::2][..., 1:], lambda x, w: x[..., 1:2] + 0),
    ("narrower and back", lambda x, w: x.half().float(), lambda x, w: x.clone()),
    ("two roundings of a bias", lambda x, w: F.linear(x, w, w.sum(1)), lambda x, w: F.linear(x, w) + w.sum(1)),
    ("beta", lambda x, w: torch.addmm(w[:, 0], x[0], w.t(), beta=2), lambda x, w: torch.addmm(w[:, 0], x[0], w.t())),
    ("inf and -inf", lambda x, w: x.masked_fill(x > 0, float("inf")), lambda x, w: x.masked_fill(x > 0, -float("inf"))),
    ("zero and minus zero", lambda x, w: x * 0.0, lambda x, w: x * -0.0),
    ("clamp below the last index", lambda x, w: best(x).clamp(0, 2), lambda x, w: best(x)),
    ("clamp above the first index", lambda x, w: best(x).clamp(1, 3), lambda x, w: best(x)),
    ("clamp of any integers", lambda x, w: x.long().clamp(0, 3), lambda x, w: x.long()),
    ("clamp of sums of indices", lambda x, w: (best(x) + 1).clamp(0, 3), lambda x, w: best(x) + 1),
    ("clamp of places of a sort", lambda x, w: best(x).sort()[1].clamp(0, 0), lambda x, w: best(x).sort()[1]),
    ("fill of the last index", lambda x, w: x[..., :2].masked_fill(best(x) >= 3, 0), lambda x, w: x[..., :2]),
    ("fill that repeats", lambda x, w: w[0, :2].masked_fill(best(x) >= 4, 0), lambda x, w: w[0, :2]),
    ("random", lambda x, w: torch.rand_like(x), lambda x, w: torch.rand_like(x)),
]


@pytest.mark.parametrize(("name", "one", "other"), DIFFERENT, ids=[case[0] for case in DIFFERENT])
def test_values_that_differ_stay_apart(name: str, one: Function, other: Function) -> None:
    both = terms(lambda x, w: (one(x, w), other(x, w)), (2, 3, 4), (5, 4))
    first, second = both.outputs[0] if isinstance(both.outputs[0], tuple) else both.outputs
    assert first is not second


def test_a_linear_reads_rows_as_the_graph_holds_them_and_makes_up_no_other() -> None:
    def side_by_side(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.mm(x.transpose(0, 1).reshape(2, 3, 4).view(6, 4), w.t()).view(2, 3, 5)

    def in_rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.mm(x.transpose(0, 1).reshape(6, 4), w.t()).view(2, 3, 5)

    held, not_held = (terms(function, (2, 3, 4), (5, 4)).outputs for function in (side_by_side, in_rows))
    assert held.op is aten.linear.default
    assert held.args[0].val.shape == (2, 3, 4)
    assert not_held.op is aten.reshape.default
    assert not_held.args[0].op is aten.linear.default


def test_a_value_read_after_a_write_is_another_value() -> None:
    def writes(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        row, copy = x[0], x.clone()
        before = torch.exp(row), torch.exp(copy)
        x.mul_(2)
        return *before, torch.exp(row), torch.exp(copy)

    canonical = terms(writes, (2, 3), (3,))
    outputs = canonical.outputs[0] if isinstance(canonical.outputs[0], tuple) else canonical.outputs
    assert outputs[0] is not outputs[2]
    assert outputs[2].args[0].op is AFTER
    assert outputs[1] is outputs[3], "a clone made before the write is not written"


def test_the_captured_graph_is_not_touched() -> None:
    model = tiny(torch.bfloat16)
    graph = capture(model, **decode_static(model))[0].graph_module.graph
    before = str(graph)
    canonicalize(graph)
    assert str(graph) == before


def test_every_rule_says_what_becomes_what() -> None:
    for rules in RULES.values():
        for rule in rules:
            assert "->" in (rule.__doc__ or ""), rule


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_canonical_terms_are_stable(dtype: torch.dtype) -> None:
    """The same graph gives the same terms each time."""
    model = tiny(dtype)
    graph = capture(model, **decode_static(model))[0].graph_module.graph
    assert str(canonicalize(graph)) == str(canonicalize(graph))
