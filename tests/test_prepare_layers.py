"""Layers of each type from the names of a checkpoint, alone, side by side and stacked: read back, they are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.patterns import w4_linear
from glmfuse.quantization.prepare import assist, int4, layers, scale_word, two_levels
from glmfuse.quantization.prepare.merge import side_by_side, stacked
from glmfuse.quantization.prepare.shard import Split, shard

INPUTS, OUTPUTS, GROUPS = 64, 96, 4
Held = dict[str, Tensor]


def static(inputs: int = INPUTS, outputs: int = OUTPUTS, dtype: torch.dtype = torch.bfloat16) -> Held:
    return {
        "weight": torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8),
        "input_scale": (torch.rand(1) + 0.1).to(dtype),
        "input_offset": torch.randint(-9, 9, (1,)).to(dtype),
        "deq_scale": torch.rand(outputs) + 0.1,
        "quant_bias": torch.randint(-999, 999, (outputs,), dtype=torch.int32),
    }


def dynamic() -> Held:
    return {
        "weight": torch.randint(-128, 128, (OUTPUTS, INPUTS), dtype=torch.int8),
        "weight_scale": (torch.rand(OUTPUTS, 1) + 0.1).to(torch.bfloat16),
    }


def floats() -> Held:
    return {"weight": torch.randn(OUTPUTS, INPUTS).to(torch.float8_e4m3fn), "weight_scale": torch.rand(OUTPUTS, 1)}


def grouped(packed: bool = False) -> Held:
    values, scale = torch.randint(-8, 8, (OUTPUTS, INPUTS), dtype=torch.int8), torch.rand(OUTPUTS, 1) + 0.1
    second = torch.rand(OUTPUTS, GROUPS) + 0.1
    made = {"weight": values, "weight_scale": scale, "weight_scale_second": second}
    if not packed:
        return made
    bytes_ = int4.pack_bytes(values.mT).mT.contiguous().view(torch.int8)
    return {**made, "weight": bytes_, "scale_bias": assist.scale_bias(values.mT, two_levels.fold(scale, second), 1)}


def by_channel() -> Held:
    """As compressed-tensors has it, with strategy channel."""
    return {name: tensor for name, tensor in grouped().items() if name != "weight_scale_second"}


def by_group() -> Held:
    """As compressed-tensors has it, with strategy group: one scale for each group and output."""
    made = grouped()
    return {"weight": made["weight"], "weight_scale": made["weight_scale"] * made["weight_scale_second"]}


INT4: list[Callable[[], Held]] = [grouped, lambda: grouped(True), by_channel, by_group]


@pytest.mark.parametrize("make", INT4, ids=["old", "1.0.0", "channel", "group"])
def test_an_int4_layer_holds_the_weights_and_scales_of_each_form(make: Callable[[], Held]) -> None:
    held = make()
    made = layers.w4a8_dynamic(held, "layer")
    scale = scale_word.scale_of(made.scale).view(-1, OUTPUTS)
    values = int4.unpack_words(made.weight)
    first, second = held["weight_scale"], held.get("weight_scale_second", torch.ones(1))
    exact = (first * second).mT.double()
    assert scale.shape == exact.shape
    assert ((scale.double() - exact).abs() <= exact * (2.0**-11 if len(scale) > 1 else 2.0**-24)).all()
    spread = scale.double().repeat_interleave(INPUTS // len(scale), 0) * values.double()
    torch.testing.assert_close(made.assist.double(), 8 * spread.sum(0), rtol=1e-2, atol=1e-1)
    assert torch.equal(values.mT, held["weight"]) or "scale_bias" in held


def test_both_versions_prepare_to_the_same_words() -> None:
    old = grouped()
    values = old["weight"]
    scale = two_levels.fold(old["weight_scale"], old["weight_scale_second"])
    new = {**old, "weight": int4.pack_bytes(values.mT).mT.contiguous().view(torch.int8)}
    new["scale_bias"] = assist.scale_bias(values.mT, scale, 16)
    one, other = layers.w4a8_dynamic(old, "layer"), layers.w4a8_dynamic(new, "layer")
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.scale, other.scale)
    torch.testing.assert_close(one.assist, other.assist, rtol=1e-5, atol=1e-4)


def test_a_static_layer_is_transposed_and_fp16_takes_words_of_19_bits() -> None:
    held = static()
    made = layers.w8a8(held, "q_proj")
    assert torch.equal(made.weight, held["weight"].t())
    assert made.weight.is_contiguous()
    assert torch.equal(made.deq_scale, held["deq_scale"])
    words = layers.w8a8(static(dtype=torch.float16), "q_proj").deq_scale
    assert words.dtype == torch.int64
    assert (words >> 46 == 1).all()


@pytest.mark.parametrize(("make", "kind"), [(dynamic, "W8A8_DYNAMIC"), (floats, "FP8_PER_TOKEN")])
def test_a_layer_of_rows_is_transposed_with_its_scales_in_fp32(make: Callable[[], Held], kind: str) -> None:
    held = [make() for _ in range(3)]
    one, all_ = (layers.LAYERS[kind](each, "layer") for each in (held[1], stacked(held, "experts")))
    assert torch.equal(one.weight.float(), held[1]["weight"].t().float())
    assert torch.equal(all_.weight[1].float(), one.weight.float())
    assert (one.scale.dtype, one.scale.shape, all_.scale.shape) == (torch.float32, (OUTPUTS,), (3, OUTPUTS))


def test_grouped_products_read_bf16_scales_beside_bf16() -> None:
    made = layers.w8a8_dynamic(dynamic(), "experts")
    halved, kept = layers.in_dtype(made, torch.bfloat16), layers.in_dtype(made, torch.float16)
    assert halved.scale.dtype == torch.bfloat16
    assert torch.equal(halved.scale.float(), made.scale)  # the checkpoint held bf16
    assert kept is made


@pytest.mark.parametrize("packed", [False, True], ids=["old", "1.0.0"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gate_and_up_of_a_rank_side_by_side_are_the_products_of_both(packed: bool, ranks: int) -> None:
    gate, up = grouped(packed), grouped(packed)
    rows, per_token = torch.randint(-128, 128, (5, INPUTS), dtype=torch.int8), torch.rand(5)

    def product(held: Held) -> Tensor:
        made = layers.w4a8_dynamic(held, "layer")
        scale = scale_word.scale_of(made.scale)
        return w4_linear.function(rows, int4.bytes_of(made.weight), scale, per_token, None, torch.float16)

    for rank in range(ranks):
        parts = [shard(held, Split(rank, ranks, False), "layer") for held in (gate, up)]
        expected = torch.cat([product(part) for part in parts], 1)
        assert torch.equal(product(side_by_side(parts, "layer")), expected)


def test_static_layers_side_by_side_share_their_inputs_scales() -> None:
    q, k = static(), static(outputs=16)
    shared = {name: q[name] for name in ("input_scale", "input_offset")}
    made = layers.w8a8(side_by_side([q, {**k, **shared}], "qkv"), "qkv")
    assert torch.equal(made.weight, torch.cat([q["weight"], k["weight"]]).t())
    assert made.deq_scale.shape == (OUTPUTS + 16,)
    k["input_scale"] = q["input_scale"] * 2
    with pytest.raises(QuantizationError, match="qkv.input_scale: expected the same for layers of one input"):
        side_by_side([q, k], "qkv")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: stacked([dynamic(), grouped()], "experts"),
            "the same tensors, found weight_scale_second in",
        ),
        (lambda: stacked([static(), static(outputs=16)], "experts"), r"experts.weight: .* one shape .* \[16, 64\] and"),
        (lambda: stacked([], "experts"), "experts: expected layers to put together, found none"),
        (lambda: side_by_side([{"w": torch.ones(1)}], "qkv"), "qkv: expected tensors named weight, .* found w"),
        (lambda: layers.w8a8(dynamic(), "q_proj"), "none named input_scale, input_offset, deq_scale, quant_bias"),
        (
            lambda: layers.w8a8({**static(), "deq_scale": torch.ones(3)}, "q"),
            r"deq_scale \[96\] of float32, f",
        ),
        (
            lambda: layers.w8a8_dynamic(floats(), "up"),
            r"up: .* weight \[96, 64\] of int8, found .* float8_e4m3fn",
        ),
        (lambda: layers.fp8_per_token(dynamic(), "up"), "of float8_e4m3fn, found .* of int8"),
        (
            lambda: layers.w8a8_dynamic({**dynamic(), "weight_scale": torch.ones(OUTPUTS)}, "up"),
            r"expected weight_scale \[96, 1\] of float32 or bfloat16 or float16, found \[96\]",
        ),
        (
            lambda: layers.w4a8_dynamic({**grouped(), "weight_scale_second": torch.ones(OUTPUTS, 5)}, "down"),
            "down: expected inputs in whole groups, found 64 by 5",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_layer(make: Callable[[], object], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        make()
