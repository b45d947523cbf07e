"""The real npugraph_ex end to end, kernels by stand-ins: what it does to a graph, and what its options change.

The first tests are the smallest cases of what looked wrong at first; their names say what was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.offline_ascend.standin.log import record

BF16 = torch.bfloat16


def compiled(function: Callable[..., Any], dynamic: bool = False, **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="npugraph_ex", fullgraph=True, dynamic=dynamic, options=options)


def differences(x: Tensor) -> Tensor:
    """Neighbours of one fresh tensor: with `inplace_pass` the subtraction is written over what it reads."""
    doubled = x * 2
    return doubled[..., 1:] - doubled[..., :-1]


@pytest.mark.parametrize("force_eager", [False, True])
def test_inplace_pass_writes_over_what_it_reads_and_of_several_rows_nobody_notices(force_eager: bool) -> None:
    x = torch.randn(2, 65)
    with record() as seen:
        found = compiled(differences, force_eager=force_eager, inplace_pass=True)(x.npu())
    assert seen.races == ["aten.sub_.Tensor"]
    assert not torch.allclose(found.cpu(), differences(x))


@pytest.mark.parametrize("force_eager", [False, True])
def test_inplace_pass_writes_over_what_it_reads_and_of_one_row_torch_npu_refuses_it(force_eager: bool) -> None:
    x = torch.randn(9)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        compiled(differences, force_eager=force_eager, inplace_pass=True)(x.npu())


@pytest.mark.parametrize("force_eager", [False, True])
def test_without_inplace_pass_neighbours_are_right(force_eager: bool) -> None:
    for x in (torch.randn(9), torch.randn(2, 65)):
        with record() as seen:
            found = compiled(differences, force_eager=force_eager, inplace_pass=False)(x.npu())
        assert torch.equal(found.cpu(), differences(x))
        assert seen.races == []


def test_inplace_pass_is_npugraph_exs_default() -> None:
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        compiled(differences)(torch.randn(9).npu())


def test_grouped_mm_is_captured_with_a_kernel_of_the_devices_own() -> None:
    x, w = torch.randn(16, 32, dtype=BF16), torch.randn(3, 32, 16, dtype=BF16)
    model = compiled(lambda x, w, ends: torch._grouped_mm(x, w, offs=ends))
    for ends in ([4, 9, 16], [0, 16, 16]):
        offsets = torch.tensor(ends, dtype=torch.int32)
        with record() as seen:
            found = model(x.npu(), w.npu(), offsets.npu())
        assert torch.equal(found.cpu(), torch._grouped_mm(x, w, offs=offsets))
    assert seen.captured == []
    assert seen.replays == 1


@pytest.mark.parametrize("given", [{}, {"is_causal": True}, {"attn_mask": "bool"}], ids=["plain", "causal", "masked"])
def test_sdpa_is_npu_fusion_attention_v3(given: dict[str, Any]) -> None:
    tensors = [torch.randn(2, heads, 5, 16, dtype=BF16) for heads in (4, 2, 2)]
    if "attn_mask" in given:
        given = {"attn_mask": torch.rand(2, 1, 5, 5) > 0.3}
        given["attn_mask"][..., 0] = True
    expected = scaled_dot_product_attention(*tensors, enable_gqa=True, **given)
    on_npu = {name: value.npu() if isinstance(value, Tensor) else value for name, value in given.items()}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True, **on_npu)

    with record() as seen:
        found = compiled(attend)(*(x.npu() for x in tensors))
    assert "npu.npu_fusion_attention_v3.default" in seen.captured
    torch.testing.assert_close(found.cpu(), expected, atol=2e-2, rtol=2e-2)


def test_a_new_shape_is_captured_again_and_a_known_one_replayed() -> None:
    w = torch.randn(8, 8)
    model = compiled(lambda x, w: (x @ w).relu(), dynamic=True)
    with record() as seen:
        for rows in (4, 4, 7, 4):
            x = torch.randn(rows, 8)
            assert torch.equal(model(x.npu(), w.npu()).cpu(), (x @ w).relu())
    assert (seen.captures, seen.replays) == (2, 4)


def attend_to(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    found: Tensor = torch.ops.npu.npu_fused_infer_attention_score(
        q * 2, k, v, num_heads=4, num_key_value_heads=2, input_layout="BNSD", scale=0.25,
        actual_seq_lengths_kv=[length, length],
    )[0]  # fmt: skip
    return found


def attended() -> list[Tensor]:
    """q [2, 4, 1, 16], k and v [2, 2, 32, 16]."""
    return [torch.randn(2, heads, tokens, 16, dtype=BF16) for heads, tokens in ((4, 1), (2, 32), (2, 32))]


def test_an_out_operator_hands_back_its_arguments_which_torch_does_not_allow() -> None:
    model = compiled(attend_to)
    with pytest.raises(RuntimeError, match="npu_fused_infer_attention_score.out.*may not alias"):
        model(*(value.npu() for value in attended()), 5)


def test_the_engine_calls_out_operators_without_a_word() -> None:
    model = torch.compile(lambda q, k, v: attend_to(q, k, v, 5), backend="glmfuse", fullgraph=True)
    tensors = attended()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model(*(value.npu() for value in tensors))
    assert torch.equal(found.cpu(), attend_to(*tensors, 5))


@pytest.mark.usefixtures("out_operators_unchecked")
def test_lengths_on_the_host_are_updated_in_a_captured_graph() -> None:
    q, k, v = attended()
    model = compiled(attend_to, dynamic=True)
    with record() as seen:
        for length in (5, 6, 30, 9):
            assert torch.equal(model(q.npu(), k.npu(), v.npu(), length).cpu(), attend_to(q, k, v, length))
    assert (seen.captures, seen.replays) == (1, 4)
    assert seen.updated == ["npu.npu_fused_infer_attention_score.out"] * 4


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="no_such_option"):
        compiled(differences, no_such_option=True)(torch.randn(9).npu())
