"""Kernels that write their argument in place, as ops that stay in the graph: `Tensor(a!)`, and no cache copied.

The kernels here are made of aten, on a CPU; on an NPU the schema is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from glmfuse import Gain, Kernel, Report, Target, pattern
from glmfuse.matching.select import Request
from glmfuse.patterns import BY_NAME
from tests.support.graphs import same_bits
from tests.test_cache_update import CASES, IN_PLACE, POSITIONS, cache, eager, rows, run, step


def one_launch(request: Request) -> Gain:
    return Gain(1.0, 2.0, "as if a launch were saved")


def scatter(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    return cache.index_copy_(2, positions, rows)


SCATTER = Target("scatter", {"cache_update": Kernel(scatter, gain_fn=one_launch, overwrites=True)})


def scatter_op() -> OpOverload:
    pattern = BY_NAME["cache_update"]
    return SCATTER.op(pattern, pattern.overload({"cache": cache(), "positions": POSITIONS, "rows": rows()}))


def test_the_schema_says_what_is_written_and_returns_nothing() -> None:
    schema = str(scatter_op()._schema)
    assert schema == "glmfuse_scatter::cache_update_(Tensor(a!) cache, Tensor positions, Tensor rows) -> ()"


def test_torch_accepts_the_op() -> None:
    checked = torch.library.opcheck(scatter_op(), (cache(), POSITIONS, rows()))
    assert set(checked.values()) == {"SUCCESS"}


def test_the_op_has_a_kernel_of_its_own_for_an_npu() -> None:
    for key in ("PrivateUse1", "CompositeExplicitAutograd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(scatter_op().name(), key)


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verify"])
@pytest.mark.parametrize(("function", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_op_is_used_only_where_nobody_can_tell(
    function: Callable[..., Any], expected: str | None, verify: bool
) -> None:
    inputs = [cache(), rows()]
    before = [tensor.clone() for tensor in inputs]
    found, report = run(function, inputs, verify=verify, targets=(SCATTER, "reference"))
    assert same_bits(found, eager(function, before))
    updates = [row for row in report.rows() if row.pattern == "cache_update"]
    ours = [row for row in updates if row.target == "scatter"]
    fused = report.graphs[0].bodies[0].fused
    assert bool(ours) == (expected == IN_PLACE)
    assert fused.count("glmfuse_scatter.cache_update") == len(ours)
    if ours:
        assert "index_copy" not in fused or verify
        assert "aten.copy_." not in fused


def two_steps(k: Tensor, v: Tensor, new: Tensor) -> Tensor:
    """Readers of both new caches, views among them, and a second use of one."""
    k.index_copy_(2, POSITIONS, new.sin())
    v.index_copy_(2, POSITIONS, new.cos())
    return (k[:, :, 1:4] * v[:, :, 2:5]).sum(-1) + k.transpose(1, 2).mean()


def allocations(call: Callable[[], Any]) -> list[int]:
    """Bytes of each tensor's memory that is allocated in a call, whoever allocates it."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("engine", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_no_cache_is_copied(engine: str) -> None:
    long = 4096
    inputs = [torch.randn(2, 2, long, 4), torch.randn(2, 2, long, 4), rows()]
    theirs = [tensor.clone() for tensor in inputs]
    report = Report()
    options = {"engine": engine, "targets": (SCATTER,), "report": report, "expect": {"cache_update": 2}}
    torch._dynamo.reset()

    def attend(k: Tensor, v: Tensor, new: Tensor) -> Tensor:
        k.index_copy_(2, POSITIONS, new.sin())
        v.index_copy_(2, POSITIONS, new.cos())
        return k[:, :, :4] + v[:, :, :4]

    compiled = torch.compile(attend, backend="glmfuse", options=options)
    found = compiled(*inputs)
    assert report.count("chosen")["cache_update"] == 2
    assert torch.allclose(found, attend(*theirs))
    assert all(torch.allclose(ours, other) for ours, other in zip(inputs, theirs, strict=True))
    cache_bytes = inputs[0].nbytes
    assert max(allocations(lambda: attend(*(tensor.clone() for tensor in theirs)))) == cache_bytes  # a clone is seen
    seen = allocations(lambda: compiled(*inputs))
    assert seen
    assert sum(seen) < cache_bytes / 16


@pytest.mark.parametrize("engine", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_readers_come_after_the_write(engine: str) -> None:
    inputs = [cache(), cache(), rows()]
    before = [tensor.clone() for tensor in inputs]
    found, report = run(two_steps, inputs, targets=(SCATTER,), engine=engine)
    assert report.count("chosen")["cache_update"] == 2
    for ours, theirs in zip(found, eager(two_steps, before), strict=True):
        torch.testing.assert_close(ours, theirs)


@pattern(dims={"x": "...", "gate": "..."})
def gated(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(x), and the same times gate; all of one shape."""
    weight = x.sigmoid()
    return weight, weight * gate


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verify"])
def test_readers_come_after_a_write_that_moves(verify: bool) -> None:
    """The rows are made by a fused op that waits for an input far below: the write moves there, and its readers."""

    def late(k: Tensor, gate: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        weight = new.sigmoid()
        k.index_copy_(2, POSITIONS, weight)
        total = k.sum()
        return total, weight * gate.exp()

    kernel = Kernel(lambda x, gate: (x.sigmoid(), x.sigmoid() * gate), gain_fn=one_launch)
    target = Target("late", {"gated": kernel, **SCATTER.kernels})
    inputs = [cache(), rows(), rows()]
    before = [tensor.clone() for tensor in inputs]
    found, report = run(late, inputs, targets=(target,), patterns=(gated,), verify=verify)
    assert report.count("chosen") == {"cache_update": 1, "gated": 1}
    assert same_bits(found, eager(late, before))


def test_a_wrong_kernel_is_caught_by_verify() -> None:
    def wrong(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        return cache.index_copy_(2, positions.flip(0), rows)

    target = Target("wrong", {"cache_update": Kernel(wrong, gain_fn=one_launch, overwrites=True)})
    with pytest.raises(Exception, match="cache_update at index_copy.*relative L2 error"):
        run(step, [cache(), rows()], targets=(target,), verify=True)


def test_a_kernel_cannot_overwrite_for_a_pattern_that_updates_nothing() -> None:
    def doubled(gate: Tensor, up: Tensor) -> Tensor:
        return gate.copy_(torch.nn.functional.silu(gate) * up)

    target = Target("swallow", {"swiglu": Kernel(doubled, gain_fn=one_launch, overwrites=True)})

    def mlp(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    _, report = run(mlp, [torch.randn(3, 8), torch.randn(3, 8)], targets=(target,))
    (row,) = [row for row in report.rows() if row.pattern == "swiglu"]
    assert row.status == "matched"
    assert "overwrites an argument, and swiglu updates none" in row.found
