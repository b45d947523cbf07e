"""int8 layers of torchao and of compressed-tensors: as graphs, and as other formulas of the same weights.

Both are independent implementations, run on a CPU. Neither is `dynamic_quantize` and `quant_linear`, so none of their
layers may become these; how far they are from them follows from where they round.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from glmfuse.lowering.tolerance import INT8_STEPS_APART
from glmfuse.patterns import dynamic_quantize, quant_linear, torchao_int8_linear, torchao_quantize, weight_only_linear
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.mutants import MEANS_THE_SAME, hold
from tests.support.mutate import mutations

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INPUTS, OUTPUTS = 64, 48
OURS = {"quantize", "dynamic_quantize", "quant_linear"}
HALF_A_UNIT = {FP32: 0.0, BF16: 2.0**-9}
"""One rounding to the dtype, at most; fp32's own is far below a step of int8."""


class Projections(nn.Module):
    """q, k and v of one x, as a decoder layer has them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(INPUTS, OUTPUTS, bias=bias) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def by_torchao(model: nn.Module) -> nn.Module:
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", [(5, INPUTS), (2, 5, INPUTS)], ids=str)
def test_torchaos_layers_are_met_as_what_they_are(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    captured = capture(by_torchao(Projections(bias).to(dtype)), torch.randn(shape).to(dtype))[0]
    module = captured.module()
    assert dict(run_stages(module).count()) == {"torchao_quantize": 1, "torchao_int8_linear": 3}
    found, expected = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits(found, expected)


def test_torchaos_model_compiled_is_torchaos_model() -> None:
    model = by_torchao(Projections(True).to(BF16))
    x = torch.randn(2, 7, INPUTS).to(BF16)
    options = {"engine": "eager", "targets": ("reference",), "expect": {"torchao_int8_linear": 3}}
    with torch.no_grad():
        assert same_bits(torch.compile(model, backend="glmfuse", options=options)(x), model(x))


@pytest.mark.parametrize("spelling", torchao_int8_linear.spellings)
def test_the_ways_to_multiply_int8_are_one_function(spelling: str) -> None:
    rows, w = (torch.randint(-128, 128, (33, 256), dtype=torch.int8) for _ in range(2))
    row_scale, scale = torch.rand(33, 1), torch.rand(33, 1)
    found, expected = (
        torchao_int8_linear.function_of(name)(rows, row_scale, w, scale, BF16) for name in (spelling, "")
    )
    assert torch.equal(found, expected)


def test_mutants_of_torchaos_layer_are_not_mistaken() -> None:
    """All but one: the dtype that the product is rounded to is an argument of the op."""
    graph = capture(by_torchao(nn.Sequential(nn.Linear(24, 8)).to(BF16)), torch.randn(2, 3, 24).to(BF16))[0]
    nodes = graph.graph_module.graph.nodes
    (rounded,) = (
        node.name
        for node in nodes
        if node.kwargs.get("dtype") == BF16 and "mul" in {user.name[:3] for user in node.users}
    )
    every = mutations(graph.graph_module.graph, {node.name for node in nodes})
    chosen = [each for each in every if (each.node, each.kind[:5]) != (rounded, "dtype")]
    harmless = {kind: MEANS_THE_SAME[kind] for kind in (r"extra user of .*",)}
    assert sum(1 for _ in hold(graph, random.sample(chosen, 40), harmless)) > 20


def test_torchaos_weights_alone_are_scaled_behind_the_product() -> None:
    """Which is no `weight_only_linear`: that one rounds each weight, this one the product twice."""
    layer = nn.Linear(256, OUTPUTS, bias=False).to(BF16)
    layer.weight.data *= torch.rand(OUTPUTS, 1).to(BF16) + 0.5  # so that one scale is unlike the next
    quantize_(model := nn.Sequential(layer), Int8WeightOnlyConfig())
    x = torch.randn(33, 256).to(BF16)
    captured = capture(model, x)[0]
    assert not run_stages(captured.module()).count()["weight_only_linear"]
    theirs, weight = model(x).detach(), model[0].weight
    ours = weight_only_linear.function(x, weight.qdata.t(), weight.scale.flatten(), None, None)
    apart = rms(ours.double() - theirs.double()) / rms(theirs)
    assert 0 < apart <= 4 * HALF_A_UNIT[BF16]
    wrong = weight_only_linear.function(x, weight.qdata.t(), weight.scale.flatten().roll(1), None, None)
    assert rms(wrong.double() - theirs.double()) / rms(theirs) > 10 * HALF_A_UNIT[BF16]


def qdq(preset: str, inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """compressed-tensors' linear, with weights not yet compressed; random weights, scales by its own formula."""
    layer = nn.Linear(inputs, outputs, bias=False).to(dtype)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    initialize_module_for_quantization(layer, scheme)
    groups = layer.weight.data.unflatten(-1, (layer.weight_scale.shape[-1], -1))
    layer.weight_scale.data = groups.abs().amax(-1) / (2.0 ** (scheme.weights.num_bits - 1) - 1)
    layer.quantization_status = QuantizationStatus.FROZEN
    return layer


@pytest.mark.parametrize(("preset", "floating"), [("W8A8", False), ("FP8_DYNAMIC", True), ("W4A8", False)])
def test_quantise_dequantise_of_rows_and_of_weights_is_met(preset: str, floating: bool) -> None:
    """compressed-tensors does not compile whole: the graph up to its break has both, the product comes after it."""
    layer = qdq(preset, 128, OUTPUTS, BF16)
    graphs = capture(layer, torch.randn(2, 5, 128).to(BF16), fullgraph=False)
    reports = [run_stages(captured.module()) for captured in graphs]
    found = {name: sum(report.count()[name] for report in reports) for name in ("fake_quantize", "fake_quantize_rows")}
    assert found == {"fake_quantize": 2, "fake_quantize_rows": 1}
    assert not OURS & {name for report in reports for name in report.count()}
    flags = [row.scalars["floating"] for report in reports for row in report.rows() if row.is_site]
    assert set(flags) == {floating}
    for captured in graphs:
        module = captured.module()
        run_stages(module)
        sides = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
        assert same_bits(*sides)


def test_two_axes_are_one_scale_for_the_whole_tensor_and_no_rows() -> None:
    """compressed-tensors keeps the first two axes of x, whatever they are: of a matrix it keeps every one."""
    layer = qdq("W8A8", INPUTS, OUTPUTS, BF16)
    (captured, *_) = capture(layer, torch.randn(5, INPUTS).to(BF16), fullgraph=False)
    assert dict(run_stages(captured.module()).count()) == {"fake_quantize": 2}


def ours(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    """dynamic_quantize and quant_linear.  x [tokens, in], w [out, in] int8, scale [out, 1]."""
    rows, per_token = dynamic_quantize.function(x)
    return quant_linear.function(rows, w.t(), scale.flatten().float(), per_token, None, None, x.dtype)


def rms(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item()


def step_of(x: Tensor) -> float:
    """An int8 step of a row, to the numbers that it rounds; both as RMS."""
    return rms(x.abs().amax(-1).float() / 127) / rms(x)


def torchao_of(x: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """torchao's result, weights and their scales."""
    (layer,) = by_torchao(nn.Sequential(nn.Linear(x.shape[-1], outputs, bias=False).to(x.dtype)))
    return layer(x).detach(), layer.weight.qdata, layer.weight.scale


def compressed_of(x: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of compressed-tensors, of weights that are on the grid of their scales, and rows of three axes."""
    layer = qdq("W8A8", x.shape[-1], outputs, x.dtype)
    w = torch.randint(-127, 128, layer.weight.shape, dtype=torch.int8)
    layer.weight.data = w.to(x.dtype) * layer.weight_scale.data
    return layer(x[None])[0].detach(), w, layer.weight_scale.data


@pytest.mark.parametrize("inputs", [64, 512, 4096])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(("library", "roundings"), [(torchao_of, 3), (compressed_of, 4)])
def test_another_librarys_layer_is_as_far_as_its_formula(
    library: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]], roundings: int, dtype: torch.dtype, inputs: int
) -> None:
    """torchao rounds to bf16 twice and we once; compressed-tensors its rows, weights and result."""
    x = torch.randn(33, inputs).to(dtype)
    theirs, w, scale = library(x, 96)
    apart = rms(ours(x, w, scale).double() - theirs.double()) / rms(theirs)
    bound = INT8_STEPS_APART[dtype] * step_of(x) + roundings * HALF_A_UNIT[dtype]
    assert bound / 10 <= apart <= bound


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_torchaos_rows_are_within_a_step_of_ours(dtype: torch.dtype) -> None:
    """Half a step each; in bf16 the largest number may be a quarter of a step further out, as its scale is rounded."""
    x = torch.randn(64, 2048).to(dtype)
    (rows, scale), (their_rows, their_scale) = dynamic_quantize.function(x), torchao_quantize.function(x)
    steps = (rows.double() * scale.double()[:, None] - their_rows.double() * their_scale.double()).abs()
    furthest = (steps / scale.double()[:, None]).max().item()
    assert 0.5 <= furthest <= (1.0 if dtype == FP32 else 1.25)
    assert not torch.equal(rows, their_rows)


def test_a_copy_of_the_weights_in_another_formula_is_noticed() -> None:
    """The comparison can fail: a row scale of another token is further away than the bound."""
    x = torch.randn(33, 512) * torch.rand(33, 1).add(0.5)
    theirs, w, scale = torchao_of(x, 96)
    rows, per_token = dynamic_quantize.function(x)
    wrong = quant_linear.function(rows, w.t(), scale.flatten(), per_token.roll(1), None, None, FP32)
    assert rms(wrong.double() - theirs.double()) / rms(theirs) > 5 * INT8_STEPS_APART[FP32] * step_of(x)
