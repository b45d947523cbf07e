"""float8 and int4 layers of compressed-tensors beside ours, on the same weights.

Run on a CPU. Theirs rounds and multiplies floating matrices; ours multiplies what is stored and scales the product.
"""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp
from torch import Tensor, nn

from glmfuse.lowering.tolerance import FP8_RELATIVE_APART, INT8_STEPS_APART, KERNEL_RELATIVE_L2
from glmfuse.patterns import dynamic_quantize, fp8_linear, fp8_quantize, w4_linear
from glmfuse.patterns.int4 import pack_int4
from tests.test_independent_int8 import HALF_A_UNIT, qdq, rms, step_of

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
TOKENS, OUTPUTS, GROUP = 33, 96, 128


def eight_floats(x: Tensor) -> tuple[nn.Linear, Tensor, Tensor]:
    """compressed-tensors' layer, its weights in float8_e4m3fn [out, in] and their scales [out, 1]."""
    layer = qdq("FP8_DYNAMIC", x.shape[-1], OUTPUTS, x.dtype)
    scale = layer.weight.data.abs().amax(-1, keepdim=True) / 448
    w = (layer.weight.data / scale).to(FP8)
    layer.weight.data, layer.weight_scale.data = w.to(x.dtype) * scale, scale
    return layer, w, scale


def codes(layer: nn.Linear, x: Tensor) -> Tensor:
    """x as compressed-tensors rounds it, row by row, still in float8."""
    args = layer.quantization_scheme.input_activations
    scale, zero = compute_dynamic_scales_and_zp(x[None], args, layer)
    return quantize(x[None], scale, zero, args, dtype=FP8)[0]


def both(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our rows and result, and theirs, of the same weights."""
    layer, w, scale = eight_floats(x)
    rows, per_token = fp8_quantize.function(x)
    ours = fp8_linear.function(rows, w.t(), scale.flatten().float(), per_token, None, x.dtype)
    return rows, ours, codes(layer, x), layer(x[None])[0].detach()


@pytest.mark.parametrize("inputs", [64, 512, 4096])
def test_in_fp32_the_formulas_of_float8_rows_agree(inputs: int) -> None:
    """max / 448, and the reciprocal of 448 / max, are an ulp apart: at most one number in a million is on an edge."""
    rows, ours, their_rows, theirs = both(torch.randn(TOKENS, inputs))
    unlike = (rows.view(torch.uint8) != their_rows.view(torch.uint8)).any(-1)
    assert unlike.sum() <= 2
    apart = rms(ours[~unlike].double() - theirs[~unlike].double()) / rms(theirs)
    assert apart <= KERNEL_RELATIVE_L2[FP32]


@pytest.mark.parametrize("inputs", [64, 512, 4096])
def test_in_bf16_they_are_as_far_apart_as_the_rounded_scale(inputs: int) -> None:
    rows, ours, their_rows, theirs = both(torch.randn(TOKENS, inputs).to(BF16))
    apart = rms(ours.double() - theirs.double()) / rms(theirs)
    bound = FP8_RELATIVE_APART + 4 * HALF_A_UNIT[BF16]
    assert bound / 10 <= apart <= bound
    assert not torch.equal(rows.view(torch.uint8), their_rows.view(torch.uint8))


@pytest.mark.parametrize("inputs", [GROUP, 4 * GROUP, 32 * GROUP])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_int4_weights_in_groups_are_as_far_as_their_formulas(dtype: torch.dtype, inputs: int) -> None:
    """The same int4 and scales of groups; what differs is how rows are rounded, as beside int8 weights."""
    x = torch.randn(TOKENS, inputs).to(dtype)
    layer = qdq("W4A8", inputs, OUTPUTS, dtype)
    scale = layer.weight_scale.data
    w = torch.randint(-8, 8, (OUTPUTS, inputs // GROUP, GROUP), dtype=torch.int8)
    layer.weight.data = (w.to(dtype) * scale.unsqueeze(-1)).flatten(1)
    rows, per_token = dynamic_quantize.function(x)
    packed = pack_int4(w.flatten(1).t().contiguous())
    ours = w4_linear.function(rows, packed, scale.t().float(), per_token, None, dtype)
    theirs = layer(x[None])[0].detach()
    apart = rms(ours.double() - theirs.double()) / rms(theirs)
    bound = INT8_STEPS_APART[dtype] * step_of(x) + 4 * HALF_A_UNIT[dtype]
    assert bound / 10 <= apart <= bound


def test_the_nibbles_the_other_way_round_are_noticed() -> None:
    """The comparison can fail: outputs of each pair exchanged are no nearer than strangers."""
    x = torch.randn(TOKENS, GROUP)
    layer = qdq("W4A8", GROUP, OUTPUTS, FP32)
    scale = layer.weight_scale.data
    w = torch.randint(-8, 8, (OUTPUTS, GROUP), dtype=torch.int8)
    layer.weight.data = w.to(FP32) * scale
    rows, per_token = dynamic_quantize.function(x)
    packed = pack_int4(w.t().contiguous())
    swapped = (packed << 4) | (packed >> 4)
    theirs = layer(x[None])[0].detach().double()
    wrong = w4_linear.function(rows, swapped, scale.t(), per_token, None, FP32)
    assert rms(wrong.double() - theirs) / rms(theirs) > 1
