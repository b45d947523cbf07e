"""vllm-ascend's own operators beside those of torch_npu that are the same function: results, fakes, replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.offline_ascend.arguments import ARGUMENTS, BF16, QINT8, Call, Draw, call
from tests.offline_ascend.arguments_moe import grouped_swiglu
from tests.offline_ascend.standin.vllm_ascend import OPERATORS
from tests.offline_ascend.test_meta import form, on

ascend, vllm, npu = torch.ops._C_ascend, torch.ops.vllm, torch.ops.npu


def norm(d: Draw) -> Call:
    return call(*ARGUMENTS["npu_add_rms_norm"](d).args[:3], None, 1e-5)


def norm_quant(d: Draw) -> Call:
    return call(d.normal(d.size(1, 9), 64), d.normal(64), d.pick(None, d.positive(64, dtype=BF16)))


def gating(d: Draw) -> Call:
    x, bias = d.normal(d.size(1, 9), 16, dtype=torch.float32), d.normal(16, dtype=torch.float32)
    return call(x, 3, 1, 1, 0, 1, 1, False, 2.5, 1e-20, d.pick(None, bias))


def dequant(d: Draw) -> Call:
    drawn = ARGUMENTS["npu_dequant_swiglu_quant"](d)
    return call(*drawn.args, **{**drawn.kwargs, "activate_left": True})


def swiglu(d: Draw) -> Call:
    x, weight, ends, scale, rows = grouped_swiglu(d).args
    return call(x, weight, scale, rows, ends)


def swiglu_list(d: Draw) -> Call:
    x, weight, scale, rows, ends = swiglu(d).args
    return call(x, list(weight.unbind(0)), list(scale.unbind(0)), rows, ends)


def swiglu_v2(d: Draw) -> Call:
    x, weight, scale, rows, ends = swiglu(d).args
    return call(x, [weight], [scale], rows, ends)


def quantize(d: Draw) -> Call:
    scale = d.positive(64, dtype=BF16) * 0.05
    return call(d.normal(d.size(1, 9), 64), scale, 1 / scale, d.ints(-9, 9, 64).to(BF16))


def rotary(d: Draw) -> Call:
    drawn = ARGUMENTS["npu_mrope"](d)
    positions, query, key, cache, head = drawn.args
    return call(positions, query, key, cache, head, cache.shape[1], drawn.kwargs["rotary_mode"] == "half")


def gemm(d: Draw) -> Call:
    return call(d.normal(d.size(1, 9), 32), d.normal(16, 32), d.pick(None, d.normal(16)))


def muls(d: Draw) -> Call:
    rows = d.size(1, 9)
    return call(d.normal(rows, 32), d.normal(rows, 32), 2.5)


DRAWN: dict[str, Callable[[Draw], Call]] = {
    "_C_ascend::npu_add_rms_norm_bias": norm,
    "_C_ascend::npu_rms_norm_dynamic_quant": norm_quant,
    "_C_ascend::moe_gating_top_k": gating,
    "_C_ascend::npu_dequant_swiglu_quant": dequant,
    "_C_ascend::grouped_matmul_swiglu_quant": swiglu,
    "_C_ascend::grouped_matmul_swiglu_quant_weight_nz": swiglu,
    "_C_ascend::grouped_matmul_swiglu_quant_weight_nz_tensor_list": swiglu_list,
    "_C_ascend::grouped_matmul_swiglu_quant_v2": swiglu_v2,
    "vllm::quantize": quantize,
    "vllm::npu_rotary_embedding": rotary,
    "vllm::unquantized_gemm": gemm,
    "vllm::muls_add": muls,
}

# The operators of torch_npu that are the same function, on the same arguments.
ALIKE: dict[str, Callable[..., Any]] = {
    "_C_ascend::npu_add_rms_norm_bias": lambda x, y, g, _, eps: npu.npu_add_rms_norm(x, y, g, eps),
    "_C_ascend::npu_dequant_swiglu_quant": npu.npu_dequant_swiglu_quant,
    "_C_ascend::grouped_matmul_swiglu_quant": lambda x, w, s, r, e: npu.npu_grouped_matmul_swiglu_quant(x, w, e, s, r),
    "_C_ascend::grouped_matmul_swiglu_quant_v2": npu.npu_grouped_matmul_swiglu_quant_v2,
    "vllm::quantize": lambda x, _, r, o: npu.npu_quantize(x, r, o, QINT8, -1, False),
    "vllm::npu_rotary_embedding": lambda p, q, k, c, h, _, neox: npu.npu_mrope(
        p, q, k, c, h, rotary_mode="half" if neox else "interleave"
    ),
    "vllm::unquantized_gemm": torch.nn.functional.linear,
    "vllm::muls_add": lambda x, y, s: x * s + y,
}


def op(name: str) -> Any:
    namespace, base = name.split("::")
    return getattr(getattr(torch.ops, namespace), base)


def test_every_operator_is_drawn() -> None:
    assert set(DRAWN) == {operator.name for operator in OPERATORS}


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_fake_has_the_form_of_the_result_eager_and_replayed(name: str) -> None:
    for seed in range(20):
        drawn = DRAWN[name](Draw(seed))
        meta, npu_arguments = on("meta", drawn), on("npu", drawn)
        found = op(name)(*npu_arguments.args, **npu_arguments.kwargs)
        assert form(op(name)(*meta.args, **meta.kwargs)) == form(found)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = op(name)(*npu_arguments.args, **npu_arguments.kwargs)
    graph.replay()
    for a, b in zip(pytree.tree_leaves(captured), pytree.tree_leaves(found), strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_it_is_the_function_of_torch_npus_operator(name: str) -> None:
    for seed in range(8):
        drawn = DRAWN[name](Draw(seed))
        same = [f(*drawn.args, **drawn.kwargs) for f in (op(name), ALIKE[name])]
        for a, b in zip(*map(pytree.tree_leaves, same), strict=True):
            assert isinstance(a, Tensor)
            assert torch.equal(a, b)


def test_gating_is_torch_npus_with_its_arguments_in_order() -> None:
    x, k, *rest, bias = gating(Draw(1)).args
    assert rest == [1, 1, 0, 1, 1, False, 2.5, 1e-20]
    found = ascend.moe_gating_top_k(x, k, *rest, bias)
    same = npu.npu_moe_gating_top_k(x, k, bias=bias, norm_type=1, routed_scaling_factor=2.5)
    for a, b in zip(found, same, strict=True):
        assert torch.equal(a, b)


def test_norm_quant_is_the_added_one_beside_nothing() -> None:
    x, gamma, smooth = norm_quant(Draw(2)).args
    q, scale = ascend.npu_rms_norm_dynamic_quant(x, gamma, smooth)
    same = npu.npu_add_rms_norm_dynamic_quant(x, torch.zeros_like(x), gamma, smooth_scale1=smooth)
    assert torch.equal(q, same[0])
    assert torch.equal(scale, same[3])


def test_beta_is_added_before_the_last_rounding() -> None:
    x, y, gamma, *_ = norm(Draw(3)).args
    beta = torch.randn_like(gamma)
    with_beta = ascend.npu_add_rms_norm_bias(x, y, gamma, beta, 1e-5)[0]
    total = (x + y).double()
    exact = torch.nn.functional.rms_norm(total, gamma.shape, gamma.double(), 1e-5) + beta.double()
    torch.testing.assert_close(with_beta.double(), exact, rtol=2**-6, atol=2**-6)
