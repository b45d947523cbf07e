"""The references against other formulas of the same functions, in fp64: norms, rotary, SwiGLU, quantisation.

So the references are the functions that the operators' documents describe. That a chip computes them is not shown.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from tests.offline_ascend.arguments import ARGUMENTS, BF16, FP16, FP32, QINT8, Draw
from tests.offline_ascend.standin.references.rounding import pack, unpack

ops = torch.ops.npu
# One rounding to the dtype, and fp32's own error; an operator that rounds n times is allowed n of them.
UNIT = {FP32: 2.0**-20, FP16: 2.0**-11 + 2.0**-20, BF16: 2.0**-8 + 2.0**-20}
SEEDS = range(8)


def close(found: Tensor, exact: Tensor, roundings: int = 1) -> None:
    unit = roundings * UNIT[found.dtype]
    torch.testing.assert_close(found.double(), exact, rtol=unit, atol=unit * 1e-2)


def within_a_step(quantised: Tensor, scale: Tensor, exact: Tensor, steps: float = 0.51) -> None:
    """Dequantised, no further from the exact value than half a step, but for fp32's own error."""
    error = (quantised.double() * scale.double() - exact).abs() / scale.double()
    assert error.max() <= steps


@pytest.mark.parametrize("seed", SEEDS)
def test_rms_norm_is_the_norm(seed: int) -> None:
    x, gamma, epsilon = ARGUMENTS["npu_rms_norm"](Draw(seed)).args
    y, rstd = ops.npu_rms_norm(x, gamma, epsilon)
    close(y, rms_norm(x.double(), gamma.shape, gamma.double(), epsilon))
    torch.testing.assert_close(
        rstd.double().squeeze(-1) ** -2 - epsilon, x.double().pow(2).mean(-1), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["npu_add_rms_norm", "npu_add_rms_norm_cast", "npu_add_rms_norm_v2"])
def test_add_rms_norm_is_the_sum_and_its_norm(name: str, seed: int) -> None:
    x1, x2, gamma, *epsilon = ARGUMENTS[name](Draw(seed)).args
    total = (x1 + x2).double()
    exact = rms_norm(total, gamma.shape, gamma.double(), *(epsilon or [1e-6]))
    if name == "npu_add_rms_norm_v2":
        ops.npu_add_rms_norm_v2(x1, x2, gamma, *epsilon)
        y, kept = x1, x2
    else:
        *wide, y, _, kept = getattr(ops, name)(x1, x2, gamma, *epsilon)
        assert all(torch.equal(w, y.float()) for w in wide)
    close(y, exact, 3)
    assert torch.equal(kept.double(), total)


def test_add_rms_norm_rounds_the_sum_the_norm_and_the_product() -> None:
    d = Draw(0)
    x1, x2, gamma = d.normal(64, 256), d.normal(64, 256), d.normal(256)
    total = x1 + x2
    normed = (total.float() * (1 / torch.sqrt(total.float().pow(2).mean(-1, keepdim=True) + 1e-6))).to(BF16)
    y, _, _ = ops.npu_add_rms_norm(x1, x2, gamma)
    assert torch.equal(y, normed * gamma)
    assert not torch.equal(y, ops.npu_rms_norm(total, gamma)[0])  # that one rounds once


@pytest.mark.parametrize("seed", SEEDS)
def test_add_rms_norm_dynamic_quant_is_a_step_from_the_norm(seed: int) -> None:
    drawn = ARGUMENTS["npu_add_rms_norm_dynamic_quant"](Draw(seed))
    x1, x2, gamma = drawn.args
    smooth = drawn.kwargs["smooth_scale1"]
    q, _, kept, scale, _ = ops.npu_add_rms_norm_dynamic_quant(*drawn.args, **drawn.kwargs)
    exact = rms_norm(x1.double() + x2.double(), gamma.shape, gamma.double(), 1e-6)
    within_a_step(q, scale.unsqueeze(-1), exact if smooth is None else exact * smooth.double())
    assert torch.equal(kept, x1 + x2)
    assert (q.abs().amax(-1) == 127).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("divide", [True, False])
def test_add_rms_norm_quant_divides_or_multiplies(seed: int, divide: bool) -> None:
    d = Draw(seed)
    x1, x2, gamma = d.normal(3, 64), d.normal(3, 64), d.normal(64)
    step = d.positive(64) * 0.1
    q, _, _ = ops.npu_add_rms_norm_quant(x1, x2, gamma, step if divide else 1 / step, None, div_mode=divide)
    exact = rms_norm(x1.double() + x2.double(), (64,), gamma.double(), 1e-6)
    reached = q.abs() < 127
    within_a_step(q[reached], step.expand(3, 64)[reached], exact[reached])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_turns_pairs_as_complex_numbers(seed: int, mode: str) -> None:
    d = Draw(seed)
    x, angle = d.normal(2, 5, 3, 64, dtype=FP32), d.normal(1, 5, 1, 32, dtype=FP32).double()
    wide = torch.cat((angle, angle), -1) if mode == "half" else angle.repeat_interleave(2, -1)
    found = ops.npu_rotary_mul(x, wide.cos().float(), wide.sin().float(), mode)
    pairs = x.double().unflatten(-1, (2, 32)).transpose(-1, -2) if mode == "half" else x.double().unflatten(-1, (32, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    exact = turned.transpose(-1, -2).flatten(-2) if mode == "half" else turned.flatten(-2)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_rotary_rounds_once() -> None:
    d = Draw(0)
    x, cos, sin = (d.normal(1, 64, 2, 64) for _ in range(3))
    turned = torch.cat((-x[..., 32:], x[..., :32]), -1)
    found = ops.npu_rotary_mul(x, cos, sin)
    assert torch.equal(found, (x.float() * cos.float() + turned.float() * sin.float()).to(BF16))
    assert not torch.equal(found, x * cos + turned * sin)


@pytest.mark.parametrize("seed", SEEDS)
def test_mrope_looks_up_what_rotary_mul_is_given_and_leaves_the_rest(seed: int) -> None:
    drawn = ARGUMENTS["npu_mrope"](Draw(seed))
    positions, query, key, cache, head = drawn.args
    mode, width = drawn.kwargs["rotary_mode"], cache.shape[-1]
    cos, sin = cache[positions].chunk(2, -1)
    spread = (lambda t: torch.cat((t, t), -1)) if mode == "half" else (lambda t: t.repeat_interleave(2, -1))
    for found, x in zip(ops.npu_mrope(*drawn.args, **drawn.kwargs), (query, key), strict=True):
        heads = x.unflatten(-1, (-1, head))
        turned = ops.npu_rotary_mul(heads[..., :width], spread(cos).unsqueeze(1), spread(sin).unsqueeze(1), mode)
        assert torch.equal(found, torch.cat((turned, heads[..., width:]), -1).flatten(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_swiglu_activates_the_left_half(seed: int) -> None:
    x, dim = ARGUMENTS["npu_swiglu"](Draw(seed)).args
    a, b = x.double().chunk(2, dim)
    close(ops.npu_swiglu(x, dim), silu(a) * b)


@pytest.mark.parametrize("seed", SEEDS)
def test_dequant_swiglu_quant_is_a_step_from_swiglu(seed: int) -> None:
    drawn = ARGUMENTS["npu_dequant_swiglu_quant"](Draw(seed))
    (x,), given = drawn.args, drawn.kwargs
    q, scale = ops.npu_dequant_swiglu_quant(x, **given)
    group = [g for g, n in enumerate(given["group_index"].tolist()) for _ in range(n)]
    wide = x.double() * given["weight_scale"].double()[group] * given["activation_scale"].double().unsqueeze(-1)
    left, right = wide.chunk(2, -1)
    exact = silu(left) * right if given["activate_left"] else silu(right) * left
    smooth = given["quant_scale"]
    within_a_step(q, scale.unsqueeze(-1), exact if smooth is None else exact * smooth.double()[group])


@pytest.mark.parametrize("seed", SEEDS)
def test_quantize_is_the_nearest_step(seed: int) -> None:
    d = Draw(seed)
    x, scales, zeros, *_ = ARGUMENTS["npu_quantize"](d).args
    q = ops.npu_quantize(x, scales, zeros, QINT8, -1, False)
    exact = x.double() * scales.double() + (0 if zeros is None else zeros.double())
    assert (q.double() - exact.clamp(-128, 127)).abs().max() <= 0.5001
    assert torch.equal(q, ops.npu_quantize(x.float(), 1 / scales.float(), zeros, QINT8, -1, True))


@pytest.mark.parametrize("seed", SEEDS)
def test_dynamic_quant_fills_each_row(seed: int) -> None:
    drawn = ARGUMENTS["npu_dynamic_quant"](Draw(seed))
    (x,), smooth = drawn.args, drawn.kwargs["smooth_scales"]
    q, scale = ops.npu_dynamic_quant(x, smooth_scales=smooth)
    exact = x.double() if smooth is None else x.double() * smooth.double()
    within_a_step(q, scale.unsqueeze(-1), exact)
    assert (q.abs().amax(-1) == 127).all()
    torch.testing.assert_close(scale.double(), exact.abs().amax(-1) / 127)


def test_dynamic_quant_of_zeros_is_zero_with_scale_zero() -> None:
    q, scale = ops.npu_dynamic_quant(torch.zeros(2, 32, dtype=BF16))
    assert not q.any()
    assert not scale.any()


@pytest.mark.parametrize("seed", SEEDS)
def test_quant_matmul_is_the_exact_product_scaled(seed: int) -> None:
    drawn = ARGUMENTS["npu_quant_matmul"](Draw(seed))
    x1, x2, scale = drawn.args
    rows, bias = drawn.kwargs["pertoken_scale"], drawn.kwargs["bias"]
    total = (x1.long() @ x2.long() + (0 if bias is None else bias.long())).double() * scale.double()
    exact = total if rows is None else total * rows.double().unsqueeze(-1)
    close(ops.npu_quant_matmul(*drawn.args, **drawn.kwargs), exact)


def test_quant_matmul_takes_scales_in_the_cubes_own_words() -> None:
    d = Draw(0)
    x1, x2, scale = d.ints(-9, 9, 4, 32, dtype=torch.int8), d.ints(-9, 9, 32, 16, dtype=torch.int8), d.positive(16)
    plain = scale.view(torch.int32).bitwise_and(~0x1FFF).view(FP32)
    words = ops.npu_trans_quant_param(scale)
    found, expected = (ops.npu_quant_matmul(x1, x2, s, output_dtype=5) for s in (words, plain))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_weight_quant_batchmatmul_widens_the_weight_first(seed: int) -> None:
    drawn = ARGUMENTS["npu_weight_quant_batchmatmul"](Draw(seed))
    x, w, scale, offset = drawn.args
    rows = [k // group for k in range(len(w))] if (group := drawn.kwargs["antiquant_group_size"]) else None
    spread = (lambda t: t.double()[rows]) if rows else (lambda t: t.double())
    weight = (w.double() + (0 if offset is None else spread(offset))) * spread(scale)
    found = ops.npu_weight_quant_batchmatmul(*drawn.args, **drawn.kwargs)
    exact = x.double() @ weight.to(BF16).double()
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-7 * exact.abs().max().item())


def test_int4_is_packed_low_bits_first() -> None:
    values = Draw(0).ints(-8, 8, 5, 24, dtype=torch.int8)
    words = pack(values)
    assert torch.equal(unpack(words), values)
    assert torch.equal(words & 0xF, values[:, ::8].int() & 0xF)
    assert torch.equal(ops.npu_convert_weight_to_int4pack(values.int()), words)
