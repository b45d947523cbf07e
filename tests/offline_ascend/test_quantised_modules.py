"""Prepared layers through torch_npu's operators, beside the pattern functions on the tensors that a checkpoint holds.

On the fake npu:0: the calls are what torch_npu takes, and what is prepared is what they mean. Numbers are those of the
stand-ins' references, which round where the kernels are said to; no chip's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch_npu
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2, QUANTISED_AGAIN, RELATIVE_L2, SPLIT_INT4
from glmfuse.patterns import (
    dynamic_quantize,
    fp8_grouped_mlp,
    fp8_linear,
    fp8_quantize,
    quant_grouped_mlp,
    quant_linear,
    quantize,
    w4_grouped_mlp,
    w4_linear,
)
from glmfuse.quantization.npu import experts, linear
from glmfuse.quantization.npu.place import place
from glmfuse.quantization.prepare import int4, layers, nz, static
from glmfuse.quantization.prepare.assist import scale_bias
from glmfuse.quantization.prepare.two_levels import fold, to_fp16
from tests.offline_ascend.standin.log import record

NPU = torch.device("npu", 0)
BF16, FP16, INT8 = torch.bfloat16, torch.float16, torch.int8
TOKENS = (1, 2, 31, 32, 33, 512)
INPUTS, OUTPUTS, WIDTH, EXPERTS, ACTIVE = 128, 64, 96, 6, 3
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)


@pytest.fixture(autouse=True)
def _internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def far(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    difference = found.cpu().double() - expected.double()
    return (difference.norm() / expected.double().norm()).item()


def drawn_x(tokens: int, dtype: torch.dtype) -> Tensor:
    """Rows of several sizes, one of zeros, one with an outlier."""
    x = torch.randn(tokens, INPUTS) * 2.0 ** torch.randint(-2, 3, (tokens, 1))
    if tokens > 3:
        x[1], x[2, 7] = 0, 60
    return x.to(dtype)


def weights8(*shape: int) -> dict[str, Tensor]:
    """int8 by output, the whole range; scales that bf16 holds, as checkpoints of bf16 models have them."""
    scale = (torch.rand(*shape[:-1], 1) * 2e-3 + 1e-3).to(BF16).float()
    return {"weight": torch.randint(-128, 128, shape, dtype=INT8), "weight_scale": scale}


def weights4(*shape: int, groups: int, packed: bool) -> dict[str, Tensor]:
    """int4 by output or in groups; of version 1.0.0 two to a byte, and scale_bias in sixteen columns."""
    values = torch.randint(-8, 8, shape, dtype=INT8)
    made = {"weight": values, "weight_scale": torch.rand(*shape[:-1], 1) * 2e-2 + 1e-2}
    if groups > 1:
        made["weight_scale_second"] = torch.rand(*shape[:-1], groups) + 0.5
    if packed:
        made["weight"] = int4.pack_bytes(values.mT).mT.contiguous().view(INT8)
        scale = fold(made["weight_scale"], made.get("weight_scale_second"))
        made["scale_bias"] = scale_bias(values.mT, scale, 16)
    return made


def read4(held: dict[str, Tensor], inputs: int) -> tuple[Tensor, Tensor]:
    """The weight and the scales as `w4_linear` reads them; scales of groups as the product takes them."""
    scale = fold(held["weight_scale"], held.get("weight_scale_second"))
    packed = int4.as_read(held["weight"], inputs, held["weight_scale"].shape[-2])
    return packed, scale if scale.shape[-2] == 1 else to_fp16(scale)


def routed(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(tokens)])
    return torch.rand(tokens, ACTIVE), ids


@DTYPES
@pytest.mark.parametrize("nz", [True, False], ids=["NZ", "ND"])
def test_a_static_layer_has_the_patterns_bits(dtype: torch.dtype, nz: bool) -> None:
    for tokens in TOKENS:
        held = weights8(OUTPUTS, INPUTS)
        scale, offset = torch.tensor([0.03], dtype=dtype), torch.randint(-20, 20, (1,)).to(dtype)
        deq = (scale * held["weight_scale"].squeeze(-1)).float()
        bias = static.quant_bias(held["weight"], offset, deq, torch.randn(OUTPUTS))
        given = {**held, "input_scale": scale, "input_offset": offset, "deq_scale": deq, "quant_bias": bias}
        x = drawn_x(tokens, dtype)
        prepared = place(layers.w8a8(given, "q_proj"), NPU, nz=nz)
        found = linear.w8a8(x.npu(), prepared)
        rows = quantize.function(x, (1 / scale).repeat(INPUTS), offset.repeat(INPUTS), None, False)
        expected = quant_linear.function(rows, held["weight"].t(), deq, None, bias, None, dtype)
        if dtype == BF16:
            assert torch.equal(found.cpu(), expected)
        else:  # graphs in fp16 take scales of 19 bits
            assert 0 < far(found, expected) < RELATIVE_L2[FP16]


@DTYPES
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_of_rows_has_the_patterns_bits(dtype: torch.dtype, biased: bool) -> None:
    for tokens in TOKENS:
        held = weights8(OUTPUTS, INPUTS)
        bias = torch.randn(OUTPUTS) if biased else None
        given = held if bias is None else {**held, "bias": bias}
        x = drawn_x(tokens, dtype).unsqueeze(0)
        found = linear.w8a8_dynamic(x.npu(), place(layers.w8a8_dynamic(given, "up_proj"), NPU))
        rows, per_token = dynamic_quantize.function(x[0])
        scale = held["weight_scale"].squeeze(-1)
        expected = quant_linear.function(rows, held["weight"].t(), scale, per_token, None, bias, dtype)
        assert torch.equal(found.cpu(), expected.unsqueeze(0))


@DTYPES
@pytest.mark.parametrize("packed", [False, True], ids=["old", "1.0.0"])
@pytest.mark.parametrize("groups", [1, 4])
def test_an_int4_layer_is_the_patterns_up_to_the_cubes_halves(dtype: torch.dtype, packed: bool, groups: int) -> None:
    for tokens in TOKENS:
        held = weights4(OUTPUTS, INPUTS, groups=groups, packed=packed)
        x = drawn_x(tokens, dtype)
        found = linear.w4a8_dynamic(x.npu(), place(layers.w4a8_dynamic(held, "down_proj"), NPU))
        rows, per_token = dynamic_quantize.function(x)
        expected = w4_linear.function(rows, *read4(held, INPUTS), per_token, None, dtype)
        assert far(found, expected) < SPLIT_INT4
        if tokens > 3:
            assert not found[1].cpu().any()  # the row of zeros


@pytest.mark.parametrize("groups", [1, 4])
def test_without_its_assist_an_int4_layer_would_be_another(groups: int) -> None:
    held = weights4(OUTPUTS, INPUTS, groups=groups, packed=True)
    held["scale_bias"] = held["scale_bias"] * 1.5
    x = drawn_x(31, BF16)
    found = linear.w4a8_dynamic(x.npu(), place(layers.w4a8_dynamic(held, "down_proj"), NPU))
    rows, per_token = dynamic_quantize.function(x)
    assert far(found, w4_linear.function(rows, *read4(held, INPUTS), per_token, None, BF16)) > 0.03


@DTYPES
def test_int8_experts_are_the_patterns_up_to_what_stays_fp32(dtype: torch.dtype) -> None:
    for tokens in TOKENS[:-1]:
        gate_up, down = weights8(EXPERTS, 2 * WIDTH, INPUTS), weights8(EXPERTS, INPUTS, WIDTH)
        x, (weights, ids) = drawn_x(tokens, dtype).unsqueeze(0), routed(tokens)
        first = place(layers.w8a8_dynamic(gate_up, "experts"), NPU)
        second = place(layers.in_dtype(layers.w8a8_dynamic(down, "experts"), dtype), NPU)
        found = experts.w8a8_dynamic(x.npu(), weights.npu(), ids.npu(), first, second)
        pairs = [(held["weight"].mT, held["weight_scale"].squeeze(-1)) for held in (gate_up, down)]
        expected = quant_grouped_mlp.function(x, weights, ids, *pairs[0], *pairs[1])
        assert far(found, expected) < QUANTISED_AGAIN[dtype]


@DTYPES
@pytest.mark.parametrize("packed", [False, True], ids=["old", "1.0.0"])
@pytest.mark.parametrize("groups", [1, 4])
def test_int4_experts_are_the_patterns_up_to_the_cubes_halves(dtype: torch.dtype, packed: bool, groups: int) -> None:
    for tokens in TOKENS[:-1]:
        gate_up = weights4(EXPERTS, 2 * WIDTH, INPUTS, groups=groups, packed=packed)
        down = weights4(EXPERTS, INPUTS, WIDTH, groups=groups, packed=packed)
        x, (weights, ids) = drawn_x(tokens, dtype).unsqueeze(0), routed(tokens)
        first, second = (place(layers.w4a8_dynamic(held, "experts"), NPU) for held in (gate_up, down))
        found = experts.w4a8_dynamic(x.npu(), weights.npu(), ids.npu(), first, second)
        pairs = [read4(gate_up, INPUTS), read4(down, WIDTH)]
        expected = w4_grouped_mlp.function(x, weights, ids, *pairs[0], *pairs[1])
        assert far(found, expected) < SPLIT_INT4 + QUANTISED_AGAIN[dtype]


def test_weights_lie_in_nz_once_and_nothing_casts_in_a_call() -> None:
    held = weights4(OUTPUTS, INPUTS, groups=1, packed=True)
    prepared = place(layers.w4a8_dynamic(held, "down_proj"), NPU)
    assert prepared.weight.untyped_storage().nbytes() == nz.to_nz(int4.as_read(held["weight"], INPUTS, OUTPUTS)).nbytes
    of_bytes = place(layers.w8a8_dynamic(weights8(OUTPUTS, INPUTS), "up_proj"), NPU)
    assert torch_npu.get_npu_format(of_bytes.weight) == 29
    assert {tensor.device for tensor in prepared if tensor is not None} == {NPU}
    with record() as seen:
        linear.w4a8_dynamic(drawn_x(3, BF16).npu(), prepared)
        linear.w8a8_dynamic(drawn_x(3, BF16).npu(), of_bytes)
    assert not [name for name in seen.launched if "format_cast" in name]


def test_fp8_is_refused_on_a_chip_without_it() -> None:
    held = {"weight": torch.randn(OUTPUTS, INPUTS).to(torch.float8_e4m3fn), "weight_scale": torch.rand(OUTPUTS, 1)}
    prepared = layers.fp8_per_token(held, "model.layers.3.self_attn.q_proj")
    says = r"layers.3.self_attn.q_proj: expected a SoC with FP8 \(Ascend950\), found Ascend910B1"
    with pytest.raises(QuantizationError, match=says):
        place(prepared, NPU, "model.layers.3.self_attn.q_proj")


def weights_fp8(*shape: int) -> dict[str, Tensor]:
    scale = torch.rand(*shape[:-1], 1) * 2e-3 + 1e-3
    return {"weight": (torch.randn(shape) * 100).clamp(-448, 448).to(torch.float8_e4m3fn), "weight_scale": scale}


@pytest.mark.usefixtures("on_a_chip_with_fp8")
@pytest.mark.parametrize("biased", [True, False])
def test_an_fp8_layer_is_the_patterns_up_to_sums_in_another_order(biased: bool) -> None:
    for tokens in TOKENS:
        held = weights_fp8(OUTPUTS, INPUTS)
        bias = torch.randn(OUTPUTS).to(BF16) if biased else None
        x = drawn_x(tokens, BF16)
        given = held if bias is None else {**held, "bias": bias}
        found = linear.fp8_per_token(x.npu(), place(layers.fp8_per_token(given, "q_proj"), NPU))
        rows, per_token = fp8_quantize.function(x)
        scale = held["weight_scale"].squeeze(-1)
        plain = fp8_linear.function(rows, held["weight"].t(), scale, per_token, None, BF16)
        # a bias comes after the rounding there, before it in the pattern
        expected = plain if bias is None else plain + bias
        assert far(found, expected) < KERNEL_RELATIVE_L2[BF16]


@pytest.mark.usefixtures("on_a_chip_with_fp8")
def test_fp8_experts_are_the_patterns_up_to_the_rounding_of_silu() -> None:
    for tokens in TOKENS[:-1]:
        gate_up, down = weights_fp8(EXPERTS, 2 * WIDTH, INPUTS), weights_fp8(EXPERTS, INPUTS, WIDTH)
        x, (weights, ids) = drawn_x(tokens, BF16).unsqueeze(0), routed(tokens)
        first, second = (place(layers.fp8_per_token(held, "experts"), NPU) for held in (gate_up, down))
        found = experts.fp8_per_token(x.npu(), weights.npu(), ids.npu(), first, second)
        pairs = [(held["weight"].mT, held["weight_scale"].squeeze(-1)) for held in (gate_up, down)]
        expected = fp8_grouped_mlp.function(x, weights, ids, *pairs[0], *pairs[1])
        assert far(found, expected) < QUANTISED_AGAIN[BF16]


INT8_EXPERTS = [
    "npu_moe_init_routing_v2",
    "npu_grouped_matmul_swiglu_quant_v2",
    "npu_grouped_matmul",
    "npu_moe_finalize_routing",
]
INT4_EXPERTS = [
    "npu_moe_init_routing_v2",
    "npu_grouped_matmul",
    "npu_swiglu",
    "npu_dynamic_quant",
    "npu_grouped_matmul",
    "npu_moe_finalize_routing",
]


@pytest.mark.parametrize(
    ("kind", "calls"), [("W8A8_DYNAMIC", INT8_EXPERTS), ("W4A8_DYNAMIC", INT4_EXPERTS)], ids=["int8", "int4"]
)
def test_experts_launch_these_and_no_copies_of_weights(kind: str, calls: list[str]) -> None:
    shapes = (EXPERTS, 2 * WIDTH, INPUTS), (EXPERTS, INPUTS, WIDTH)
    make = weights8 if kind == "W8A8_DYNAMIC" else partial(weights4, groups=4, packed=True)
    first, second = (layers.LAYERS[kind](make(*shape), "experts") for shape in shapes)
    second = layers.in_dtype(second, BF16) if isinstance(second, layers.Int8) else second
    weights, ids = (tensor.npu() for tensor in routed(5))
    placed, x = [place(layer, NPU) for layer in (first, second)], drawn_x(5, BF16).npu()
    with record() as seen:
        experts.EXPERTS[kind](x, weights, ids, *placed)
    names = [name.removeprefix("npu.").removesuffix(".default") for name in seen.launched]
    assert [name for name in names if name.startswith("npu_")] == calls
    assert len(names) <= len(calls) + 1  # ids to int32
    assert seen.allocated < first.weight.nbytes
