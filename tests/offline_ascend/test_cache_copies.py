"""Which updates of a long cache npugraph_ex leaves in place: shown by what it captures and by the bytes it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.log import Log, record

BF16 = torch.bfloat16
BLOCKS, SIZE, HEADS, DIM = 128, 128, 2, 16  # 16,384 tokens


def captured(function: Callable[..., Any], *args: Tensor) -> Log:
    model = torch.compile(function, backend="npugraph_ex", fullgraph=True, dynamic=False)
    with record() as seen:
        model(*args)
    return seen


def cache() -> Tensor:
    return torch.randn(BLOCKS, SIZE, HEADS, DIM, dtype=BF16).npu()


def test_index_copy_stays_in_place() -> None:
    whole, row = cache().flatten(0, 1), torch.randn(1, HEADS, DIM, dtype=BF16)
    at = torch.randint(0, BLOCKS * SIZE, (1,))
    before = whole.cpu()
    seen = captured(lambda c, at, row: c.index_copy_(0, at, row)[0].sum(), whole, at.npu(), row.npu())
    assert seen.captured == ["aten.index_copy_.default", "aten.sum.default"]
    assert seen.allocated < 4096 < whole.nbytes
    assert torch.equal(whole.cpu(), before.index_copy(0, at, row))


def test_scatter_nd_update_stays_in_place() -> None:
    whole, row = cache().flatten(0, 1), torch.randn(1, HEADS, DIM, dtype=BF16)
    at = torch.randint(0, BLOCKS * SIZE, (1, 1))

    def update(c: Tensor, at: Tensor, row: Tensor) -> Tensor:
        torch.ops.npu.npu_scatter_nd_update_(c, at, row)
        return c[0].sum()

    seen = captured(update, whole, at.npu(), row.npu())
    assert seen.captured == ["npu.npu_scatter_nd_update_.default", "aten.sum.default"]
    assert seen.allocated < 4096 < whole.nbytes


def test_scatter_pa_kv_cache_copies_both_caches() -> None:
    """npugraph_ex makes it functional and writes both results back, with its in-place pass on as well."""
    rows, slots = torch.randn(3, HEADS, DIM, dtype=BF16).npu(), torch.tensor([1, 5, 900], dtype=torch.int32).npu()
    keys, values = cache(), cache()

    def update(rows: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        torch.ops.npu.npu_scatter_pa_kv_cache(rows, rows, keys, values, slots, cache_mode="Norm")
        return keys[0].sum()

    seen = captured(update, rows, keys, values, slots)
    assert "npu.npu_scatter_pa_kv_cache_functional.default" in seen.captured
    assert seen.captured.count("aten.copy_.default") == 2
    assert seen.allocated >= keys.nbytes + values.nbytes
