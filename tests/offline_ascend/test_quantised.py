"""Quantised calls of torch_npu and vllm-ascend: which are the patterns, which are not, and blocks over them.

On the fake npu:0; numbers are those of the stand-ins' references, no chip's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from glmfuse import dialects, pattern
from glmfuse.capture import Fresh, trace
from glmfuse.matching.pattern import Pattern
from glmfuse.patterns import dynamic_quantize, quant_linear, quantize
from tests.offline_ascend.test_dialects import calls
from tests.offline_ascend.vllm_layer import QuantLinear
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
QUINT4X2 = 16
npu, vllm = torch.ops.npu, torch.ops.vllm
dialects.load(pytest.fail)

TOKENS, INPUTS, OUTPUTS = 5, 64, 32


def drawn() -> dict[str, Tensor]:
    """Arguments of every call below, on the npu."""
    scale = torch.rand(INPUTS) + 0.5
    made = {
        "x": torch.randn(TOKENS, INPUTS).to(BF16),
        "deep": torch.randn(2, INPUTS, INPUTS).to(BF16),
        "scale": scale.to(BF16),
        "inverse": (1 / scale).to(BF16),
        "offset": torch.randint(-9, 9, (INPUTS,)).to(BF16),
        "rows": torch.randint(-128, 128, (TOKENS, INPUTS), dtype=INT8),
        "w": torch.randint(-128, 128, (INPUTS, OUTPUTS), dtype=INT8),
        "out_scale": torch.rand(OUTPUTS) * 1e-3 + 1e-4,
        "per_token": torch.rand(TOKENS) + 0.5,
        "whole": torch.randint(-999, 999, (OUTPUTS,), dtype=torch.int32),
        "bias": torch.randn(OUTPUTS),
        "groups": torch.tensor([TOKENS]),
    }
    return {name: value.npu() for name, value in made.items()}


def product(t: dict[str, Tensor], **keywords: Any) -> Tensor:
    return npu.npu_quant_matmul(t["rows"], t["w"], t["out_scale"], **{"output_dtype": BF16, **keywords})


def int64_scale(t: dict[str, Tensor]) -> Tensor:
    scale = npu.npu_trans_quant_param(t["out_scale"])
    return npu.npu_quant_matmul(t["rows"], t["w"], scale, output_dtype=FP16)


Made = Callable[[dict[str, Tensor]], Any]

MEANT: dict[str, tuple[str, Made]] = {
    "times the reciprocal": (
        "quantize",
        lambda t: npu.npu_quantize(t["x"], t["inverse"], t["offset"], torch.qint8, -1, False),
    ),
    "no offset": ("quantize", lambda t: npu.npu_quantize(t["x"], t["inverse"], None, torch.qint8, -1, False)),
    "one scale": ("quantize", lambda t: npu.npu_quantize(t["x"], t["inverse"][:1], None, torch.qint8, -1, False)),
    "divided": ("quantize", lambda t: npu.npu_quantize(t["x"], t["scale"], t["offset"], torch.qint8, -1, True)),
    "divided by axis 1 of 2": ("quantize", lambda t: npu.npu_quantize(t["x"], t["scale"], None, torch.qint8)),
    "fp32 offset": (
        "quantize",
        lambda t: npu.npu_quantize(t["x"], t["inverse"], t["offset"].float(), torch.qint8, -1, False),
    ),
    "vllm": ("quantize", lambda t: vllm.quantize(t["x"], t["scale"], t["inverse"], t["offset"])),
    "per token": ("dynamic_quantize", lambda t: npu.npu_dynamic_quant(t["x"])),
    "per token, named": ("dynamic_quantize", lambda t: npu.npu_dynamic_quant(t["x"], dst_type=INT8)),
    "of three axes": ("dynamic_quantize", lambda t: npu.npu_dynamic_quant(t["deep"])),
    "product": ("quant_linear", product),
    "product in fp16": ("quant_linear", lambda t: product(t, output_dtype=FP16)),
    "int32 bias": ("quant_linear", lambda t: product(t, bias=t["whole"])),
    "bias": ("quant_linear", lambda t: product(t, bias=t["bias"])),
    "bf16 bias and scales": (
        "quant_linear",
        lambda t: npu.npu_quant_matmul(
            t["rows"], t["w"], t["out_scale"].to(BF16), bias=t["bias"].to(BF16), output_dtype=BF16
        ),
    ),
    "rows scaled": ("quant_linear", lambda t: product(t, pertoken_scale=t["per_token"])),
    "rows scaled, int32 bias": ("quant_linear", lambda t: product(t, pertoken_scale=t["per_token"], bias=t["whole"])),
    "weights held the other way": (
        "quant_linear",
        lambda t: npu.npu_quant_matmul(t["rows"], t["w"].t().contiguous().t(), t["out_scale"], output_dtype=BF16),
    ),
}
"""Calls that are a pattern's, and whose."""

OTHER: dict[str, Made] = {
    "quantize to uint8": lambda t: npu.npu_quantize(t["x"], t["inverse"], None, torch.quint8, -1, False),
    "quantize to int32": lambda t: npu.npu_quantize(t["x"], t["scale"], None, torch.qint32, -1, True),
    "quantize to int4": lambda t: npu.npu_quantize(t["x"], t["inverse"], None, QUINT4X2, -1, False),
    "divide by rows": lambda t: npu.npu_quantize(t["x"], t["scale"][:TOKENS], None, torch.qint8, 0, True),
    "divide by the axis in the middle": lambda t: npu.npu_quantize(t["deep"], t["scale"], None, torch.qint8, 1, True),
    "divide by the last but one": lambda t: npu.npu_quantize(t["deep"], t["scale"], None, torch.qint8, -2, True),
    "multiply by the last but one": lambda t: npu.npu_quantize(t["deep"], t["scale"], None, torch.qint8, -2, False),
    "smoothed rows": lambda t: npu.npu_dynamic_quant(t["x"], smooth_scales=t["scale"]),
    "smoothed groups": lambda t: npu.npu_dynamic_quant(
        t["x"], smooth_scales=t["scale"][None], group_index=t["groups"].to(torch.int32)
    ),
    "rows of int4": lambda t: npu.npu_dynamic_quant(t["x"], dst_type=QUINT4X2),
    "by tensor": lambda t: npu.npu_dynamic_quant(t["x"], quant_mode="pertensor"),
    "by channel": lambda t: npu.npu_dynamic_quant(t["deep"], quant_mode="perchannel"),
    "another largest number": lambda t: npu.npu_dynamic_quant(t["x"], dst_type_max=15.0),
    "product to int8": lambda t: product(t, output_dtype=None),
    "product to int8 by name": lambda t: product(t, output_dtype=INT8),
    "product to int32": lambda t: product(t, output_dtype=torch.int32),
    "product with an offset": lambda t: product(t, output_dtype=None, offset=t["bias"]),
    "scales as int64": int64_scale,
    "rows that are hifloat8": lambda t: product(t, x1_dtype=torch_npu.hifloat8),
    "weights that are hifloat8": lambda t: product(t, x2_dtype=torch_npu.hifloat8),
    "scales that are exponents": lambda t: npu.npu_quant_matmul(
        t["rows"],
        t["w"],
        t["out_scale"].to(torch.uint8),
        scale_dtype=torch_npu.float8_e8m0fnu,
        output_dtype=BF16,
    ),
    "scales of rows that are exponents": lambda t: product(
        t, pertoken_scale=t["per_token"].to(torch.uint8), pertoken_scale_dtype=torch_npu.float8_e8m0fnu
    ),
    "groups": lambda t: product(t, group_sizes=[0, 0, 0]),
    "scale of the result": lambda t: product(t, y_scale=t["out_scale"]),
    "a batch of products": lambda t: npu.npu_quant_matmul(
        t["rows"].expand(2, TOKENS, INPUTS), t["w"], t["out_scale"], output_dtype=BF16
    ),
}
"""Calls that differ from a pattern's in what one keyword or the form of one argument means."""


def traced(function: Made, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The call on fake tensors: operators are asked for the form of their results alone."""
    fresh = Fresh()
    fakes = [fresh.empty(tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors.values()]

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(function(dict(zip(tensors, values, strict=True)))))

    return trace(call, tuple(fakes))


@pytest.mark.parametrize("name", MEANT)
def test_a_call_that_means_the_pattern_is_found(name: str) -> None:
    expected, function = MEANT[name]
    assert dict(run_stages(traced(function, drawn())).count()) == {expected: 1}


@pytest.mark.parametrize("name", OTHER)
def test_a_call_that_means_something_else_is_not_mistaken(name: str) -> None:
    module = traced(OTHER[name], drawn())
    before = calls(module)
    assert not run_stages(module).count()
    assert calls(module) == before


@pattern(dims={"x": "T K", "w": "K O", "scale": "O"}, dtypes={"w": INT8, "scale": FP32})
def quantised_dynamic(x: Tensor, w: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """quant_linear of rows quantised by themselves.  x [tokens, in], w [in, out] -> [tokens, out]."""
    rows, per_token = dynamic_quantize(x)
    return quant_linear(rows, w, scale, per_token, None, None, dtype)


@pattern(
    dims={"x": "T K", "factor": "K", "offset": "K", "inverse": "K", "w": "K O", "scale": "O", "bias": "O"},
    dtypes={"w": INT8, "scale": FP32, "bias": torch.int32},
)
def quantised_static(
    x: Tensor,
    factor: Tensor,
    offset: Tensor,
    inverse: Tensor | None,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """quant_linear of rows times known factors.  x [tokens, in], w [in, out] -> [tokens, out]."""
    rows = quantize(x, factor, offset, inverse, False)
    return quant_linear(rows, w, scale, None, bias, None, dtype)


def numbered(module: fx.GraphModule) -> list[Any]:
    """Every call with its arguments, nodes by their place in the graph, whatever they are named."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    return [(node.target, *fx.map_arg((node.args, node.kwargs), place.get)) for node in place]


@pytest.mark.parametrize(
    ("block", "dynamic"), [(quantised_static, False), (quantised_dynamic, True)], ids=["W8A8", "W8A8_DYNAMIC"]
)
def test_a_block_over_the_semantic_ops_is_put_back_as_vllm_ascend_wrote_it(block: Pattern, dynamic: bool) -> None:
    layer = QuantLinear(INPUTS, OUTPUTS, dynamic=dynamic).npu()
    captured = capture(layer, torch.randn(TOKENS, INPUTS, dtype=BF16).npu())[0]
    module = captured.module()
    report = run_stages(module, patterns=(block,))
    assert dict(report.count("chosen")) == {block.name: 1}
    assert numbered(module) == numbered(captured.module())
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in expected])
