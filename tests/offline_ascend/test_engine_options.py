"""What the engine npugraph_ex is told, and what it is not asked to capture; on the fake npu:0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import glmfuse
from glmfuse.lowering.engines import capturable
from tests.offline_ascend.standin.log import record
from tests.offline_ascend.test_engine import PLAIN, on_npu, prompt

BLOCKS, SIZE, HEADS, DIM = 128, 128, 2, 16


def run(options: dict[str, Any], experts: str = "grouped_mm") -> Tensor:
    model = on_npu(experts)
    call = torch.compile(model, backend="glmfuse", fullgraph=True, options={"targets": PLAIN, **options})
    return call(**prompt(model)).logits


def test_an_option_that_this_torch_npu_lacks_is_named() -> None:
    with pytest.raises(Exception, match="unknown engine option of 'npugraph_ex': 'clone_inputs'"):
        run({"engine_options": {"clone_inputs": False}})


@pytest.mark.parametrize("passes", [("inplace_pass",), ("pattern_fusion_pass",)], ids=" ".join)
def test_its_own_passes_are_off_and_may_be_turned_on(passes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import npugraph_ex

    given: list[dict[str, Any]] = []
    compile_fx = npugraph_ex.compile_fx

    def heard(module: Any, inputs: Any, options: dict[str, Any]) -> Any:
        given.append(options)
        return compile_fx(module, inputs, options)

    monkeypatch.setattr("npugraph_ex.compile_fx", heard)
    run({})
    torch._dynamo.reset()
    run({"engine_options": dict.fromkeys(passes, True)})
    assert [options["inplace_pass"] for options in given] == [False, "inplace_pass" in passes]
    assert [options["pattern_fusion_pass"] for options in given] == [False, "pattern_fusion_pass" in passes]


def test_what_verify_compares_is_not_captured() -> None:
    report = glmfuse.Report()
    with record() as log:
        run({"verify": True, "report": report})
    assert not log.captures
    (graph,) = report.graphs
    assert graph.verified
    assert all(site.calls == 1 for site in graph.verified.values())


def test_experts_that_would_read_the_host_in_a_capture_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in gives `_grouped_mm` a kernel; torch_npu has none, and this is what it would be like."""
    monkeypatch.setattr(capturable, "_has_kernel", lambda op: False)
    with pytest.raises(Exception, match="torch._grouped_mm has no kernel of torch_npu's.*use target 'aclnn'"):
        run({})
    for options, experts in (
        ({}, "batched_mm"),
        ({"targets": None}, "grouped_mm"),
        ({"engine_options": {"force_eager": True}}, "grouped_mm"),
    ):
        torch._dynamo.reset()
        run(options, experts)


def test_caches_of_pages_are_written_where_they_lie() -> None:
    """AOT makes a function of the operator and copies both caches back; npugraph_ex alone leaves it so."""

    def update(rows: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        torch.ops.npu.npu_scatter_pa_kv_cache(rows, rows, keys, values, slots, cache_mode="Norm")
        return keys[0].sum()

    rows = torch.randn(3, HEADS, DIM, dtype=torch.bfloat16)
    slots = torch.tensor([1, 5, 900], dtype=torch.int32)
    caches = [torch.randn(BLOCKS, SIZE, HEADS, DIM, dtype=torch.bfloat16) for _ in range(2)]
    ours = [cache.npu() for cache in caches]
    call = torch.compile(update, backend="glmfuse", fullgraph=True, dynamic=False)
    with record() as log:
        call(rows.npu(), *ours, slots.npu())
    assert [op for op in log.captured if "scatter_pa" in op or "copy" in op] == ["npu.npu_scatter_pa_kv_cache.default"]
    assert log.allocated < caches[0].nbytes / 16
    for cache, written in zip(caches, ours, strict=True):
        cache.view(-1, HEADS, DIM)[slots.long()] = rows
        assert torch.equal(written.cpu(), cache)
