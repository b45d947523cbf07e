"""NZ weights: torch_npu's own allocation and its own memory of the format. How a chip reads them is not shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch_npu

from tests.offline_ascend.standin.formats import FRACTAL_NZ
from tests.offline_ascend.standin.log import record


@pytest.fixture(autouse=True)
def _internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def test_a_cast_weight_has_the_formats_storage_and_the_same_numbers() -> None:
    weight = torch.randn(100, 60, dtype=torch.bfloat16)
    cast = torch_npu.npu_format_cast(weight.npu(), FRACTAL_NZ)
    assert torch_npu.get_npu_format(cast) == FRACTAL_NZ
    assert cast.shape == weight.shape
    assert cast.untyped_storage().nbytes() == 112 * 64 * 2  # padded to sixteen by sixteen
    assert torch.equal(cast.cpu(), weight)
    x = torch.randn(3, 100, dtype=torch.bfloat16)
    assert torch.equal((x.npu() @ cast).cpu(), x @ weight)


def test_casting_twice_casts_once() -> None:
    weight = torch.randn(64, 64, dtype=torch.bfloat16).npu()
    with record() as seen:
        once = torch_npu.npu_format_cast(weight, FRACTAL_NZ)
        twice = torch_npu.npu_format_cast(once, FRACTAL_NZ)
    assert seen.launched.count("npu.npu_format_cast.default") == 1
    assert twice.data_ptr() == once.data_ptr()
