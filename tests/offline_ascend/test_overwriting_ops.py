"""An op that writes a cache in place, through the real npugraph_ex: the cache is neither copied nor allocated again.

torch_npu over stand-ins for CANN; the kernel is aten's own `index_copy_`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse import Gain, Kernel, Report, Target
from glmfuse.matching.select import Request
from tests.offline_ascend.standin.log import record

LONG = 16384


def scatter(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    return cache.index_copy_(2, positions, rows)


def one_launch(request: Request) -> Gain:
    return Gain(1.0, 2.0, "as if a launch were saved")


SCATTER = Target("scatter", {"cache_update": Kernel(scatter, gain_fn=one_launch, overwrites=True)})


def attend(k: Tensor, v: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """One step over two caches: rows written, and some rows of both read."""
    k.index_copy_(2, at, new.sin())
    v.index_copy_(2, at, new.cos())
    return k[:, :, :4] * v[:, :, :4]


def update_and_read(cache: Tensor, at: Tensor, new: Tensor) -> Tensor:
    return cache.index_copy_(2, at, new)[:, :, :4] * 2


@pytest.mark.parametrize("held", [True, False], ids=["static", "given"])
def test_what_is_written_into_a_capture_s_input_is_the_caller_s(held: bool) -> None:
    """npugraph_ex copies the inputs of a capture, but for those that it sees written."""
    cache, new, at = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 1, 8), torch.tensor([2])
    ours = cache.npu()
    if held:
        torch._dynamo.mark_static_address(ours)
    options = {"engine": "npugraph_ex", "targets": (SCATTER,), "expect": {"cache_update": 1}}
    run = torch.compile(update_and_read, backend="glmfuse", options=options)
    for _ in range(3):
        new.mul_(-1.5)
        found = run(ours, at.npu(), new.npu())
        cache.index_copy_(2, at, new)
        assert torch.equal(ours.cpu(), cache)
        assert torch.equal(found.cpu(), cache[:, :, :4] * 2)


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "force_eager"])
def test_no_cache_is_copied(eager: bool) -> None:
    report = Report()
    caches = [torch.randn(1, 2, LONG, 8) for _ in range(2)]
    at, new = torch.tensor([2]), torch.randn(1, 2, 1, 8)
    ours = [tensor.npu() for tensor in caches]
    options = {"engine": "npugraph_ex", "targets": (SCATTER,), "report": report, "expect": {"cache_update": 2}}
    run = torch.compile(attend, backend="glmfuse", options={**options, "engine_options": {"force_eager": eager}})
    place, given = at.npu(), new.npu()
    for tensor in (*ours, place, given):
        torch._dynamo.mark_static_address(tensor)  # as those of a StaticCache are: a capture reads them where they lie
    for call in range(3):
        with record() as seen:
            found = run(*ours, place, given)
        assert torch.equal(found.cpu(), attend(*caches, at, new))
        for mine, theirs in zip(ours, caches, strict=True):
            assert torch.equal(mine.cpu(), theirs)
        ran = seen.launched if eager else seen.captured
        if eager or call == 0:
            assert ran.count("aten.index_copy_.default") == 2
        assert not {"aten.clone.default", "aten.copy_.default", "aten.index_copy.default"} & set(ran)
        assert not [size for size in seen.copied if size >= caches[0].nbytes]
        assert seen.allocated < caches[0].nbytes / 16
