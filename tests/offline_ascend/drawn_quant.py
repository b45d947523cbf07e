"""Random arguments of quantised patterns, at sizes that torch_npu's operators take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.normed import rows_of
from glmfuse.quantization.prepare import int4
from glmfuse.quantization.prepare.assist import assist_bias
from glmfuse.quantization.prepare.scale_word import wide_bits
from tests.offline_ascend.draw import EPS, Arguments, Draw

FP8 = torch.float8_e4m3fn


def _quantize(draw: Draw) -> Arguments:
    """Scales as either form takes them, some so small that numbers saturate; halves are met with a power of two."""
    hidden = draw.size(8, 64)
    channels = draw.pick(1, hidden)
    scale = draw.positive(channels) * draw.pick(0.02, 30.0) if draw.pick(True, False) else torch.full((channels,), 4.0)
    return {
        "x": draw.values(draw.size(1, 3), draw.size(1, 9), hidden, scale=3.0),
        "scale": scale.to(draw.dtype),
        "inverse": (1 / scale).to(draw.dtype),
        **draw.unless_absent(offset=draw.ints(-9, 9, channels).to(draw.dtype)),
        **draw.flags,
    }


def _dynamic_quantize(draw: Draw) -> Arguments:
    """Rows of all orders of magnitude, one of them zeros."""
    rows, hidden = draw.size(2, 9), draw.size(8, 64)
    x = draw.values(2, rows, hidden, wide=True) * 10.0 ** draw.ints(-3, 3, 2, rows, 1)
    x[0, 0] = 0.0
    return {"x": x.to(draw.dtype)}


def _quant_linear(draw: Draw) -> Arguments:
    """The floating bias is fp32, which torch_npu takes beside every output dtype."""
    tokens, inputs, outputs = draw.size(1, 9), draw.size(1, 64), draw.size(1, 48)
    return {
        "x": draw.ints(-128, 128, tokens, inputs, dtype=torch.int8),
        "w": draw.ints(-128, 128, inputs, outputs, dtype=torch.int8),
        "scale": draw.positive(draw.pick(1, outputs)) * 1e-3,
        **draw.unless_absent(
            per_token=draw.positive(tokens) * 0.01,
            quant_bias=draw.ints(-999, 999, outputs, dtype=torch.int32),
            bias=draw.values(outputs, wide=True),
        ),
        "dtype": draw.pick(torch.bfloat16, torch.float16),
    }


def _fp8_linear(draw: Draw) -> Arguments:
    tokens, inputs, outputs = draw.size(1, 9), draw.size(1, 64), draw.size(1, 48)
    return {
        "x": draw.values(tokens, inputs, scale=100.0, wide=True).clamp(-448, 448).to(FP8),
        "w": draw.values(inputs, outputs, scale=100.0, wide=True).clamp(-448, 448).to(FP8),
        "scale": draw.positive(outputs) * 1e-3,
        "per_token": draw.positive(tokens) * 0.01,
        **draw.unless_absent(bias=draw.values(outputs, wide=True)),
        "dtype": draw.pick(torch.bfloat16, torch.float16),
    }


def _wide_norm(draw: Draw, dtype: torch.dtype) -> Arguments:
    """At the size of eps, so that a test can tell whether it is there."""
    shape = draw.size(1, 3), draw.size(1, 9), draw.size(1, 9, by=32)
    x, residual = (draw.values(*shape, scale=EPS**0.5).to(dtype) for _ in range(2))
    return {
        "x": x,
        **draw.unless_absent(residual=residual),
        "w_norm": draw.values(shape[-1], scale=0.2, around=1.0).to(dtype),
        "eps": EPS,
    }


def _wide_norm_quantize(draw: Draw) -> Arguments:
    """bf16, which alone stays in fp32 throughout."""
    norm = _wide_norm(draw, torch.bfloat16)
    hidden = norm["x"].shape[-1]
    return {
        **norm,
        "scale": (draw.positive(hidden) * (0.05 if draw.flags["divide"] else 20.0)).to(torch.bfloat16),
        **draw.unless_absent(offset=draw.ints(-9, 9, hidden).to(torch.bfloat16)),
        **draw.flags,
    }


def _wide_norm_dynamic_quantize(draw: Draw) -> Arguments:
    """bf16 and fp16, as the operators take them."""
    return _wide_norm(draw, torch.bfloat16 if draw.dtype == torch.float32 else draw.dtype)


def _quant_grouped_mlp(draw: Draw, few: int = 1, many: int = 9) -> Arguments:
    """Some experts have no rows; the model is half, and so are weights of choices that it was rounded to."""
    dtype = torch.bfloat16 if draw.dtype == torch.float32 else draw.dtype
    batch, tokens, experts = draw.size(1, 3), draw.size(few, many), draw.size(2, 8)
    hidden, width, active = draw.size(1, 3, by=32), draw.size(1, 2, by=32), draw.size(1, experts)
    scores = draw.values(batch * tokens, experts, wide=True)
    return {
        "x": draw.values(batch, tokens, hidden).to(dtype),
        "weights": scores.softmax(-1)[:, :active],
        "ids": scores.argsort(-1)[:, :active],
        "w_gate_up": draw.ints(-127, 128, experts, hidden, 2 * width, dtype=torch.int8),
        "s_gate_up": draw.positive(experts, 2 * width) * 0.01 * hidden**-0.5,
        "w_down": draw.ints(-127, 128, experts, width, hidden, dtype=torch.int8),
        "s_down": draw.positive(experts, hidden) * 0.01 * width**-0.5,
    }


def _quant_mlp(draw: Draw) -> Arguments:
    """Rows, or a batch of them, as the variant says; a half model."""
    dtype = torch.bfloat16 if draw.dtype == torch.float32 else draw.dtype
    lead = [draw.size(1, 9) for _ in range(draw.sizes["..."])]
    hidden, width, out = (draw.size(1, 3, by=32) for _ in range(3))
    both = width * (1 + ("w_up" in draw.absent))
    x = draw.values(*lead, hidden).to(dtype)
    rows, per_token = dynamic_quantize(rows_of(x))
    return {
        "x": x,
        "rows": rows,
        "per_token": per_token,
        "w_gate": draw.ints(-127, 128, hidden, both, dtype=torch.int8),
        "s_gate": draw.positive(both) * 0.01 * hidden**-0.5,
        **draw.unless_absent(
            w_up=draw.ints(-127, 128, hidden, width, dtype=torch.int8),
            s_up=draw.positive(width) * 0.01 * hidden**-0.5,
        ),
        "w_down": draw.ints(-127, 128, width, out, dtype=torch.int8),
        "s_down": draw.positive(out) * 0.01 * width**-0.5,
    }


def _weight_only(draw: Draw, in_each: int) -> Arguments:
    """int8, or eight int4 to a word; in fp16 where the model is fp32, and with a bias of the dtype that goes with x."""
    dtype = torch.float16 if draw.dtype == torch.float32 else draw.dtype
    groups = draw.sizes.get("G", draw.size(1, 4))
    tokens, inputs, width = draw.size(1, 9), groups * draw.size(1, 2, by=32), draw.size(1, 4, by=8)
    outputs = width * in_each
    lead = draw.pick((), (1,)) if groups == 1 else (groups,)
    stored, most = (torch.int8, 2**7) if in_each == 1 else (torch.int32, 2**31)
    return {
        "x": draw.values(tokens, inputs).to(dtype),
        "w": draw.ints(-most, most, inputs, width, dtype=stored),
        "scale": (draw.positive(*lead, outputs) * 0.01).to(dtype),
        **draw.unless_absent(
            offset=draw.values(*lead, outputs, scale=5.0, wide=True).to(dtype),
            bias=draw.values(outputs, wide=True).to(torch.float32 if dtype == torch.bfloat16 else dtype),
        ),
    }


def _int4_layer(draw: Draw, inputs: int, outputs: int, *lead: int, groups: int = 1) -> tuple[Tensor, ...]:
    """Words of int4, their scales in words, and 8 * the sums of the scaled weights, as the operator takes them."""
    values = draw.ints(-8, 8, *lead, inputs, outputs, dtype=torch.int8)
    scale = draw.positive(*lead, groups, outputs) * 0.2 * inputs**-0.5
    held = scale if groups > 1 or draw.pick(True, False) else scale.squeeze(-2)
    return int4.pack_words(values), wide_bits(held), assist_bias(values, scale)


def _split_w4_linear(draw: Draw) -> Arguments:
    groups, tokens = draw.sizes.get("G", draw.size(2, 4)), draw.size(1, 9)
    inputs, outputs = groups * draw.size(1, 3, by=32), draw.size(1, 3, by=32)
    w, scale, assist = _int4_layer(draw, inputs, outputs, groups=groups)
    return {
        "x": draw.ints(-128, 128, tokens, inputs, dtype=torch.int8),
        "w": w,
        "scale": scale,
        "assist": assist,
        "per_token": draw.positive(tokens) * 0.01,
        "dtype": draw.pick(torch.bfloat16, torch.float16),
    }


def _split_w4_grouped_mlp(draw: Draw) -> Arguments:
    """As the experts in int8, in as many groups as the variant says; so many rows that errors of a step have a mean."""
    drawn = _quant_grouped_mlp(draw, few=20, many=30)
    experts = len(drawn["w_down"])
    groups, parts = draw.sizes.get("G", 2), draw.sizes.get("F", 2)
    hidden, width = drawn["x"].shape[-1], drawn["w_down"].shape[1]
    gate_up = _int4_layer(draw, hidden, 2 * width, experts, groups=groups)
    down = _int4_layer(draw, width, hidden, experts, groups=parts)
    layers = zip(("gate_up", "down"), (gate_up, down), strict=True)
    return {
        **{name: drawn[name] for name in ("x", "weights", "ids")},
        **{f"{kind}_{name}": part for name, layer in layers for kind, part in zip("wsa", layer, strict=True)},
    }


ARGUMENTS: Mapping[str, Callable[[Draw], Arguments]] = {
    "quantize": _quantize,
    "dynamic_quantize": _dynamic_quantize,
    "quant_linear": _quant_linear,
    "fp8_quantize": _dynamic_quantize,
    "fp8_linear": _fp8_linear,
    "wide_norm_quantize": _wide_norm_quantize,
    "wide_norm_dynamic_quantize": _wide_norm_dynamic_quantize,
    "quant_grouped_mlp": _quant_grouped_mlp,
    "quant_mlp_w8a8_dynamic": _quant_mlp,
    "split_w4_linear": _split_w4_linear,
    "split_w4_grouped_mlp": _split_w4_grouped_mlp,
    "weight_only_linear": partial(_weight_only, in_each=1),
    "w4_weight_only_linear": partial(_weight_only, in_each=8),
}
