"""Tensors dealt out to ranks: nothing lost, and the products of the parts are the parts, or terms, of the product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.quantization.prepare import assist, int4, two_levels
from glmfuse.quantization.prepare.shard import AXES, Split, shard

INPUTS, OUTPUTS, GROUPS = 96, 64, 16
RANKS = [1, 2, 4, 8, 16]
Held = dict[str, Tensor]


def w8a8() -> Held:
    return {
        "weight": torch.randint(-128, 128, (OUTPUTS, INPUTS), dtype=torch.int8),
        "input_scale": torch.rand(1) + 0.1,
        "input_offset": torch.randint(-9, 9, (1,)).float(),
        "deq_scale": torch.rand(OUTPUTS) + 0.1,
        "quant_bias": torch.randint(-999, 999, (OUTPUTS,), dtype=torch.int32),
    }


def w8a8_dynamic() -> Held:
    return {
        "weight": torch.randint(-128, 128, (OUTPUTS, INPUTS), dtype=torch.int8),
        "weight_scale": torch.rand(OUTPUTS, 1) + 0.1,
        "weight_offset": torch.rand(OUTPUTS, 1),
        "bias": torch.randn(OUTPUTS),
    }


def w4a8(parts: int, packed: bool) -> Held:
    values = torch.randint(-8, 8, (OUTPUTS, INPUTS), dtype=torch.int8)
    scale, second = torch.rand(OUTPUTS, 1) + 0.1, torch.rand(OUTPUTS, GROUPS) + 0.1
    held = int4.pack_bytes(values.mT).mT.contiguous().view(torch.int8) if packed else values
    made = {"weight": held, "weight_scale": scale, "weight_scale_second": second}
    bias = assist.scale_bias(values.mT, two_levels.fold(scale, second), parts)
    return {**made, "scale_bias": bias} if packed else made


def parts_of(held: Held, ranks: int, by_inputs: bool) -> list[Held]:
    return [shard(held, Split(rank, ranks, by_inputs), "layer") for rank in range(ranks)]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("by_inputs", [False, True], ids=["column-parallel", "row-parallel"])
@pytest.mark.parametrize("kind", ["w8a8", "w8a8_dynamic", "old", "1.0.0"])
def test_the_parts_of_each_tensor_are_the_whole(kind: str, by_inputs: bool, ranks: int) -> None:
    makers = {"w8a8": w8a8, "w8a8_dynamic": w8a8_dynamic}
    held = makers[kind]() if kind in makers else w4a8(16 if by_inputs else 1, kind == "1.0.0")
    parts = parts_of(held, ranks, by_inputs)
    for name, whole in held.items():
        axis = AXES[name].inputs if by_inputs else AXES[name].outputs
        own = [part[name] for part in parts]
        if axis is not None:
            assert torch.equal(torch.cat(own, axis), whole)
        elif by_inputs and name in ("bias", "quant_bias"):
            assert torch.equal(torch.stack(own).sum(0), whole)
            assert torch.equal(own[0], whole)
        else:
            assert all(torch.equal(part, whole) for part in own)


def product(x: Tensor, held: Held) -> Tensor:
    """x times an int4 weight of two levels, in fp64."""
    inputs, outputs = x.shape[1], held["weight_scale"].shape[0]
    values = int4.unpack_bytes(int4.as_read(held["weight"], inputs, outputs)).double()
    scale = two_levels.fold(held["weight_scale"], held["weight_scale_second"])
    return x @ (values * scale.double().repeat_interleave(inputs // scale.shape[0], 0))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("packed", [False, True], ids=["old", "1.0.0"])
def test_products_of_split_inputs_add_up_and_of_split_outputs_stand_side_by_side(packed: bool, ranks: int) -> None:
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    columns, rows = w4a8(1, packed), w4a8(16, packed)
    beside = [product(x, part) for part in parts_of(columns, ranks, False)]
    torch.testing.assert_close(torch.cat(beside, 1), product(x, columns), rtol=1e-6, atol=1e-6)
    own = x.split(INPUTS // ranks, 1)
    terms = [product(part, held) for part, held in zip(own, parts_of(rows, ranks, True), strict=True)]
    torch.testing.assert_close(torch.stack(terms).sum(0), product(x, rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", RANKS)
def test_each_rank_finds_the_scale_bias_of_its_own_inputs(ranks: int) -> None:
    held = w4a8(16, True)
    for part in parts_of(held, ranks, True):
        inputs = INPUTS // ranks
        values = int4.unpack_bytes(int4.as_read(part["weight"], inputs, OUTPUTS))
        scale = two_levels.fold(part["weight_scale"], part["weight_scale_second"])
        assert part["scale_bias"].shape == (OUTPUTS, assist.scale_bias_columns(True, ranks))
        found = assist.assist_of(part["scale_bias"], OUTPUTS)
        torch.testing.assert_close(found, assist.assist_bias(values, scale), rtol=1e-5, atol=1e-4)


def test_a_part_is_a_copy() -> None:
    held = w8a8_dynamic()
    before = held["weight"].clone()
    for name, tensor in shard(held, Split(0, 2, False), "layer").items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
        tensor.zero_()
    assert torch.equal(held["weight"], before)


@pytest.mark.parametrize(
    ("held", "split", "says"),
    [
        (w4a8(16, True), Split(0, 32, True), "down_proj: expected at most 16 ranks .* 1.0.0, found tp 32"),
        (w4a8(1, True), Split(0, 2, True), r"down_proj: expected scale_bias with 16 columns .* found \[64, 1\]"),
        (w4a8(1, False), Split(0, 32, True), "_second: expected .* axis 1 in 32 equal parts, found 16 by 32"),
        (w8a8(), Split(0, 5, False), r"down_proj.weight: expected weight \[64, 96\] with axis 0 in 5"),
        (w4a8(1, True), Split(0, 64, False), r"down_proj.weight: expected weight \[32, 96\] .* found 32 by 64"),
        (w8a8(), Split(2, 2, False), "down_proj: expected a rank of 2, found rank 2"),
        ({"zero_point": torch.ones(3)}, Split(0, 1, False), "expected tensors named weight, .* found zero_point"),
    ],
)
def test_what_does_not_come_apart_is_refused(held: Held, split: Split, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        shard(held, split, "model.layers.3.mlp.down_proj")
