"""Programs on which a careless fusion would be wrong: each result is the unfused one, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse import Kernel, Report, Target, pattern
from glmfuse.matching.register import spelling_of
from glmfuse.patterns import rms_norm, route_topk
from tests.support.graphs import same_bits
from tests.support.toys import TOYS

norm = rms_norm.function


@pattern(dims={"x": "... H"})
def toy_scaled_exp(x: Tensor, s: float) -> Tensor:
    """exp(x) * s.  x [..., hidden] -> [..., hidden]."""
    return torch.exp(x) * s


def run(
    function: Callable[..., Any], *args: Any, backend: str = "glmfuse", dynamic: bool | None = None, **options: Any
) -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = {"engine": "eager", "patterns": (*TOYS, toy_scaled_exp), **options} if backend == "glmfuse" else None
    return torch.compile(function, backend=backend, options=given, dynamic=dynamic)(*args)


def check(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> Report:
    report = Report()
    expected = torch.utils._pytree.tree_leaves(run(function, *args, backend="aot_eager", dynamic=dynamic))
    found = torch.utils._pytree.tree_leaves(run(function, *args, dynamic=dynamic, report=report))
    assert same_bits(found, expected)
    return report


def strided(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    turned = x.t()
    packed = turned.contiguous()
    return tuple(norm(torch.as_strided(part, (8, 8), (8, 1)), w, 1e-6) for part in (turned, packed))


def legacy_cat(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    nothing = torch.empty(0)
    return (
        norm(torch.cat([nothing, x, y], -1).reshape(8), w, 1e-6),
        norm(torch.cat([x, y], 0).reshape(8), w, 1e-6),
    )


def copied_dims(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    last, middle = torch.unsqueeze_copy(x, -1), torch.unsqueeze_copy(x, 1)
    return norm(last.expand(4, 4, 4) + 1, w, 1e-6), norm(middle.expand(4, 4, 4) + 1, w, 1e-6)


def signed_zeros(x: Tensor) -> tuple[Tensor, ...]:
    return 1 / (torch.exp(x) * 0.0), 1 / (torch.exp(x + 1) * -0.0)


def eight_bits(x: Tensor, w: Tensor) -> Tensor:
    return norm(x.to(torch.float8_e4m3fn).to(x.dtype), w, 1e-6)


def deep(x: Tensor) -> Tensor:
    for _ in range(1200):
        x = x + 1
    return x


def integers_only(i: Tensor) -> Tensor:
    x = i.float()
    return torch.nn.functional.silu(torch.sin(x)) * torch.cos(x)


CASES: list[tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, int]]] = [
    (strided, (torch.randn(8, 8), torch.randn(8)), {"rms_norm": 2}),
    (legacy_cat, (torch.randn(2, 2), torch.randn(2, 2), torch.randn(8)), {"rms_norm": 2}),
    (copied_dims, (torch.randn(4, 4), torch.randn(4)), {"rms_norm": 2}),
    (signed_zeros, (torch.randn(4, 4),), {"toy_scaled_exp": 2}),
    (eight_bits, (torch.randn(2, 4, 8), torch.randn(8)), {"rms_norm": 1}),
    (deep, (torch.randn(2, 8),), {}),
    (integers_only, (torch.arange(32).reshape(4, 8),), {"swiglu": 1}),
    (lambda x: torch.exp(x) * 2, (torch.randn(4, 4),), {"toy_scaled_exp": 1}),
    (lambda x, w: norm(norm(x, w, 1e-6), w, 1e-6), (torch.randn(2, 8), torch.randn(8)), {"rms_norm": 2}),
]


@pytest.mark.parametrize(("function", "inputs", "chosen"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_result_is_the_unfused_one(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], chosen: dict[str, int]
) -> None:
    assert dict(check(function, *inputs).count("chosen")) == chosen


def test_another_memory_layout_inside_is_refused_with_the_operator() -> None:
    def layout(x: Tensor, w: Tensor) -> Tensor:
        turned = x.transpose(1, 2)
        mean = turned.contiguous().pow(2).mean(-1, keepdim=True)
        return w * (turned * torch.rsqrt(mean + 1e-6))

    (row,) = check(layout, torch.randn(3, 1024, 5), torch.randn(1024)).rows()
    assert row.stage == "KERNEL"
    assert "aten.mean.dim would read another memory layout" in row.found


def test_random_numbers_are_drawn_in_their_order() -> None:
    def draws(x: Tensor) -> tuple[Tensor, ...]:
        a = torch.sin(x)
        first, second = torch.bernoulli(a.abs()), torch.rand(4, 4)
        return first, torch.cos(a) + second, a

    (row,) = [row for row in check(draws, torch.randn(4, 4)).rows() if row.pattern == "toy_sin_cos"]
    assert row.stage == "CYCLE"
    assert "bernoulli -> rand" in row.found


def test_symbolic_maxima_are_no_writes() -> None:
    def largest(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return norm(x, w, 1e-6), x.new_zeros(max(x.shape[0], x.shape[1]))

    report = check(largest, torch.randn(3, 4, 8), torch.randn(8), dynamic=True)
    assert report.count("chosen")["rms_norm"] == 1


def test_sites_that_read_each_other_all_run_and_leave_nothing_behind() -> None:
    calls: list[int] = []

    def kernel(x: Tensor, w: Tensor, eps: float) -> Tensor:
        calls.append(1)
        return norm(x, w, eps) + len(calls)

    x, w = torch.randn(2, 8), torch.randn(8)
    targets = (Target("marked", {"rms_norm": Kernel(kernel)}),)
    report = Report()
    found = run(lambda x, w: norm(norm(x, w, 1e-6), w, 1e-6), x, w, targets=targets, report=report)
    assert torch.equal(found, norm(norm(x, w, 1e-6) + 1, w, 1e-6) + 2)
    assert "rsqrt" not in report.graphs[0].bodies[0].fused


def test_values_handed_out_twice_stay_two_tensors() -> None:
    first, second = run(lambda x, w: (norm(x, w, 1e-6), norm(x, w, 1e-6)), torch.randn(2, 8), torch.randn(8))
    before = second.clone()
    first.add_(1)
    assert torch.equal(second, before)


def sorted_routes(logits: Tensor, bias: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    weights, ids = route_topk.function(logits, bias, **arguments)
    order = ids.argsort(-1)
    return weights.gather(1, order).contiguous(), ids.gather(1, order).contiguous()


def test_verify_takes_experts_in_any_order() -> None:
    targets = (Target("ordered", {"route_topk": Kernel(sorted_routes)}),)
    routes = lambda logits, bias: route_topk.function(logits, bias, 4, 1, 1, True, 1.5)  # noqa: E731
    run(routes, torch.randn(5, 16), torch.randn(16), targets=targets, verify=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, eps: norm(x, w, eps).double(),
        lambda x, w, eps: norm(x, w, eps)[:1],
        lambda x, w, eps: norm(x, w, eps).transpose(0, 1).contiguous().transpose(0, 1),
    ],
    ids=["dtype", "shape", "strides"],
)
def test_verify_sees_a_wrong_layout(wrong: Callable[..., Any]) -> None:
    x = torch.randn(1, 4, 8).expand(2, 4, 8).contiguous()
    targets = (Target("laid_out", {"rms_norm": Kernel(wrong)}),)
    with pytest.raises(Exception, match="expected torch.float32 of shape"):
        run(lambda x, w: norm(x, w, 1e-6), x, torch.randn(8), targets=targets, verify=True)


def test_verify_tells_bodies_apart() -> None:
    def branches(x: Tensor, w: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: norm(x, w, 1e-6), lambda x: norm(x, w, 1e-6) + 1, (x,))

    report = Report()
    run(branches, torch.randn(2, 4, 8), torch.randn(8), verify=True, report=report)
    assert len(report.graphs[0].verified) == 2


def test_grad_enabled_inside_a_model_is_told_and_keeps_the_report() -> None:
    def inside(x: Tensor, w: Tensor) -> Tensor:
        with torch.enable_grad():
            return norm(x, w, 1e-6)

    weight = torch.nn.Parameter(torch.randn(8))
    report = Report()
    with pytest.warns(UserWarning, match="compiled without fusion"):
        result = run(inside, torch.randn(2, 4, 8), weight, report=report)
    with torch.enable_grad():
        result.sum().backward()
    assert weight.grad is not None
    assert any("without fusion" in note for note in report.graphs[0].notes)


@pattern(dims={"x": "T H"})
def toy_silu(x: Tensor) -> Tensor:
    """x * sigmoid(x).  x [tokens, hidden] -> [tokens, hidden]."""
    return torch.sigmoid(x) * x


@spelling_of(toy_silu)
def toy_silu_turned(x: Tensor) -> Tensor:
    """The same numbers, laid out by columns."""
    return torch.nn.functional.silu(x.t().contiguous()).t()


@pattern(dims={"x": "T H"})
def toy_silu_of_exp(x: Tensor) -> Tensor:
    """silu(exp(x)).  x [tokens, hidden] -> [tokens, hidden]."""
    return toy_silu(torch.exp(x))


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda y: y,
    "packed": lambda y: y.contiguous(),
    "flat": lambda y: y.contiguous().view(-1),
    "strided": lambda y: torch.as_strided(y.contiguous(), (4, 4), (8, 1)),
}


@pytest.mark.parametrize("kept", [False, True], ids=["inlined", "an op"])
@pytest.mark.parametrize("read", READERS)
def test_a_spelling_that_lies_otherwise_changes_no_strides(read: str, kept: bool) -> None:
    def function(x: Tensor) -> Tensor:
        return READERS[read](torch.nn.functional.silu(torch.exp(x).t().contiguous()).t())

    mine = Target("mine", {"toy_silu_of_exp": Kernel(toy_silu_of_exp.function)})
    x, report = torch.randn(4, 8), Report()
    options = {"patterns": (toy_silu, toy_silu_of_exp), "only": ("toy_silu_of_exp",), "report": report}
    found = run(function, x, targets=(mine,) if kept else ("reference",), **options)
    torch.testing.assert_close(found, function(x), check_stride=True)
    assert report.count("chosen")["toy_silu_of_exp"] == (read != "as it is"), "nothing holds it as the ops return it"


@pattern(dims={"x": "T H"})
def toy_turned(x: Tensor) -> Tensor:
    """tanh(exp(x)) turned, in rows.  x [tokens, hidden] -> [hidden, tokens]."""
    return torch.tanh(torch.exp(x)).t().contiguous()


@pytest.mark.parametrize("kept", [False, True], ids=["inlined", "an op"])
def test_a_pattern_that_ends_with_a_copy_changes_no_strides(kept: bool) -> None:
    """The graph holds the value before the copy: what is inlined is laid out so, an op is not and is refused."""
    mine = Target("mine", {"toy_turned": Kernel(toy_turned.function)})
    x, report = torch.randn(4, 8), Report()
    options = {"patterns": (toy_turned,), "only": ("toy_turned",), "report": report}
    found = run(lambda x: torch.tanh(torch.exp(x)).t(), x, targets=(mine,) if kept else ("reference",), **options)
    torch.testing.assert_close(found, torch.tanh(torch.exp(x)).t(), rtol=0, atol=0, check_stride=True)
    assert report.count("chosen")["toy_turned"] == (not kept)
    assert kept == ("its op returns torch.float32 of shape (8, 4) and strides (4, 1)" in str(report))


@pattern(dims={"x": "... H"})
def toy_widened(x: Tensor) -> Tensor:
    """X in fp32.  x [..., hidden] -> alike."""
    return x.to(torch.float32)


def test_a_pattern_that_is_nothing_in_some_dtype_is_not_looked_for_there() -> None:
    x, report = torch.randn(3, 8), Report()
    options = {"patterns": (toy_widened,), "only": ("toy_widened",), "report": report}
    assert torch.equal(run(torch.sin, x, **options), torch.sin(x))
    assert not report.count()
