"""Graphs that speak torch_npu or vllm-ascend are read, on the fake npu:0 by the stand-ins' references.

vllm-ascend's operators are made up with its schemas; torch_npu's are its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glmfuse import dialects
from glmfuse.capture import as_tuple
from glmfuse.dialects.spelled import Spelled
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2, REQUANTISED_RELATIVE_L2, allowed
from glmfuse.lowering.verify import _in_one_order, difference
from glmfuse.matching.examples import variants
from glmfuse.matching.pattern import Variant
from tests.offline_ascend.drawn import arguments
from tests.offline_ascend.sites import on_npu
from tests.offline_ascend.vllm_layer import Layer, step
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

BF16 = torch.bfloat16
NOTES: list[str] = []
dialects.load(NOTES.append)

SPELLED = [
    pytest.param(spelled, variant, id=f"{name}-{variant}")
    for name, dialect in dialects.DIALECTS.items()
    for spelled in dialect
    for variant in variants(spelled.pattern)
    if variant.spelling == spelled.function.__name__
]


def test_every_operator_of_the_dialects_is_there_and_traces() -> None:
    assert not NOTES
    assert all(spelled.is_there for dialect in dialects.DIALECTS.values() for spelled in dialect)


def limit_of(spelled: Spelled, dtype: torch.dtype) -> float:
    """How far a spelling may be from its pattern, by what is said of its roundings."""
    if spelled.rounds_alike:
        return KERNEL_RELATIVE_L2.get(dtype, 0.0)
    return REQUANTISED_RELATIVE_L2[dtype] if spelled.requantises else allowed(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("spelled", "variant"), SPELLED)
def test_a_spelling_computes_its_pattern(spelled: Spelled, variant: Variant, dtype: torch.dtype) -> None:
    for seed in range(3):
        values = arguments(spelled.pattern.name, variant, dtype, seed)
        found = [tensor.cpu() for tensor in as_tuple(spelled.function(**on_npu(values)))]
        expected = as_tuple(spelled.pattern.function(**values))
        ordered = (_in_one_order(tensors, spelled.pattern.unordered) for tensors in (found, expected))
        for ours, theirs in zip(*ordered, strict=True):
            assert difference(ours, theirs)[1] <= limit_of(spelled, theirs.dtype)


@pytest.mark.usefixtures("out_operators_unchecked")
@pytest.mark.parametrize(("spelled", "variant"), SPELLED)
def test_it_is_found_and_put_back_with_every_bit(spelled: Spelled, variant: Variant) -> None:
    values = on_npu(arguments(spelled.pattern.name, variant, BF16, 4))
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in values.items() if name not in tensors}
    context = spelled.pattern.context
    function = context.around(spelled.function) if context else spelled.function
    captured = capture(lambda **given: as_tuple(function(**given, **rest)), **tensors)[0]
    module = captured.module()
    report = run_stages(module, only=(spelled.pattern.name,))
    same_graph = {str(variant), str(replace(variant, sizes=()))}  # a size need not make another graph of a spelling
    assert same_graph & {row.variant for row in report.rows() if row.is_site}
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in expected])


def calls(module: torch.fx.GraphModule) -> list[str]:
    """Every call with its arguments, tensors by what they are."""

    def show(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            val = value.meta.get("val")
            return f"{val.dtype}{tuple(val.shape)}" if isinstance(val, Tensor) else str(value.target)
        return [show(item) for item in value] if isinstance(value, list | tuple) else repr(value)

    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    return [f"{node.target} {show(node.args)} { {k: show(v) for k, v in node.kwargs.items()} }" for node in nodes]


def launches(module: torch.fx.GraphModule) -> list[str]:
    """The operators in order, but for views and choices of results, of which a block has its own."""
    operators = [call.split(" [")[0] for call in calls(module)]
    return [name for name in operators if name not in ("aten.view.default", "<built-in function getitem>")]


@pytest.mark.parametrize("dynamic", [False, True], ids=["W8A8", "W8A8_DYNAMIC"])
def test_a_quantised_layer_of_vllm_ascend_is_read_and_put_back_call_for_call(dynamic: bool) -> None:
    layer = Layer(dynamic=dynamic).npu().eval()
    captured = capture(layer, *step())[0]
    untouched = captured.module()
    assert not run_stages(untouched, only=()).count()
    assert calls(untouched) == calls(captured.module())
    module = captured.module()
    report = run_stages(module)
    whole = {"swiglu_mlp_w8a8_dynamic": 1, "quant_mlp_w8a8_dynamic": 1} if dynamic else {"swiglu_mlp_w8a8": 1}
    assert dict(report.count()) == {
        "add_rms_norm": 2,
        "rms_norm": 2,
        "rotary_embedding": 1,
        "swiglu": 1,
        "dynamic_quantize" if dynamic else "quantize": 4,
        "quant_linear": 4,
        "norm_dynamic_quantize" if dynamic else "norm_quantize": 2,
        **whole,
    }
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in expected])
    assert launches(module) == launches(captured.module())


class Patched(nn.Module):
    """The front of a layer with torch_npu's operators in place of a model's own, as training frameworks patch it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q_norm, self.k_norm = (nn.Parameter(torch.rand(size) + 0.5) for size in (64, 16, 16))
        self.q, self.k, self.v = nn.Linear(64, 96), nn.Linear(64, 32), nn.Linear(64, 32)

    def heads(self, x: Tensor, norm: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = torch.ops.npu.npu_rms_norm(x.unflatten(-1, (-1, 16)), norm, 1e-5)[0].transpose(1, 2)
        turned = torch.ops.npu.npu_rotary_mul(x[..., :8], cos, sin)
        return torch.cat([turned, x[..., 8:]], dim=-1)

    def forward(self, x: Tensor, residual: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        y, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, self.norm, 1e-5)
        q, k = self.heads(self.q(y), self.q_norm, cos, sin), self.heads(self.k(y), self.k_norm, cos, sin)
        return q, k, self.v(y).unflatten(-1, (-1, 16)).transpose(1, 2), total


def test_a_block_matches_over_operators_of_torch_npu() -> None:
    model = Patched().to(BF16).npu().eval()
    x, residual = (torch.randn(2, 5, 64, dtype=BF16).npu() for _ in range(2))
    cos, sin = (torch.randn(2, 1, 5, 8, dtype=BF16).npu() for _ in range(2))
    captured = capture(model, x, residual, cos, sin)[0]
    module = captured.module()
    report = run_stages(module)
    assert report.count()["norm_qkv_rope"] == 1
    assert report.count("chosen")["norm_qkv_rope"] == 1
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in expected])
