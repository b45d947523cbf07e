"""The fake npu:0 computes as the CPU does, over its own memory, and says what it was asked."""

from __future__ import annotations

import pytest
import torch

from tests.offline_ascend.standin.log import record


def test_operators_are_the_cpus() -> None:
    x, w = torch.randn(4, 5), torch.randn(5, 5)
    with record() as seen:
        found = (x.npu() @ w.npu()).softmax(-1)
    assert found.device.type == "npu"
    assert torch.equal(found.cpu(), (x @ w).softmax(-1))
    assert seen.launched[-2:] == ["aten.matmul.default", "aten._softmax.default"]


def test_views_write_through() -> None:
    x = torch.randn(3, 4)
    on_npu = x.npu()
    on_npu.t()[1].mul_(2)
    x[:, 1] *= 2
    assert torch.equal(on_npu.cpu(), x)


def test_bytes_are_counted_by_torch_npus_allocator() -> None:
    x = torch.randn(1024, 1024).npu()
    with record() as seen:
        x.add_(1)
    assert seen.allocated < 4096
    with record() as seen:
        x + 1
    assert seen.allocated >= x.nbytes


def test_a_result_given_as_an_argument_takes_its_size() -> None:
    x, out = torch.randn(7), torch.empty(0, device="npu")
    torch.add(x.npu(), 1, out=out)
    assert torch.equal(out.cpu(), x + 1)


def test_integers_are_counted_as_on_an_npu() -> None:
    ids = torch.randint(0, 8, (100,))
    expected = torch.bincount(ids, minlength=8)
    assert torch.equal(torch.histc(ids.npu().int(), 8, 0, 7).cpu().long(), expected)


def test_an_output_that_is_the_input_is_refused_as_by_the_cpu() -> None:
    x, order = torch.randn(6).npu(), torch.randperm(6).npu()
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        torch.gather(x, 0, order, out=x)


@pytest.mark.parametrize("write", [lambda c: c[1:].sub_(c[:-1]), lambda c: c.as_strided((3, 3), (0, 1)).add_(1)])
def test_writing_over_what_is_read_is_refused_as_by_torch_npu(write) -> None:
    with pytest.raises(RuntimeError, match="refer(s)? to a single memory location"):
        write(torch.randn(9).npu())
