"""Quantised patterns written out, with a keyword for each thing that may be done otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glmfuse.patterns.grouped_mlp import combined, take
from glmfuse.patterns.rms_norm import rms_norm
from tests.support.quantised_layer import Int8, int8_rows, saturated

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
TOKENS, INPUTS, OUTPUTS, GROUPS = 6, 24, 6, 4
"""As many tokens as outputs, so that one scale fits where the other belongs."""


def fp8_rows(
    x: Tensor,
    largest: float = 448.0,
    stored: torch.dtype = FP8,
    over: Any = -1,
    held: bool = True,
    none: float = 0.0,
    quotient: bool = True,
    reciprocal: bool = True,
    least: float | None = None,
    absolute: bool = True,
) -> tuple[Tensor, Tensor]:
    wide = x.float()
    most = (wide.abs() if absolute else wide).amax(over)
    most = most if least is None else most.clamp(min=least)
    factor = torch.full_like(most, largest) / most if quotient else largest * most.reciprocal()
    rows = torch.nan_to_num(wide * (factor.unsqueeze(-1) if over == -1 else factor), nan=none)
    rows = rows.clamp(-448.0, 448.0) if held else rows
    return rows.to(stored), factor.reciprocal() if reciprocal else most / largest


def product(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    per_token: Tensor,
    bias: Tensor,
    wide: torch.dtype = FP32,
    tokens_first: bool = False,
    bias_at: str = "end",
    rounded: str = "once",
    one_scale: bool = False,
    one_token: bool = False,
    shift: float = 0.0,
    scales_first: bool = False,
) -> Tensor:
    y = torch.mm(x.to(wide), w.to(wide)).float() + shift if shift else torch.mm(x.to(wide), w.to(wide)).float()
    y = y + bias.float() if bias_at == "before the scales" else y
    outputs, tokens = scale[:1] if one_scale else scale, (per_token[:1] if one_token else per_token).unsqueeze(-1)
    if scales_first:
        y = y * (outputs * tokens)
    else:
        y = y * tokens * outputs if tokens_first else y * outputs
        y = y + bias.float() if bias_at == "between the scales" else y
        y = y.to(BF16).float() if rounded == "between the scales" else y
        y = y if tokens_first else y * tokens
    if bias_at != "end":
        return y.to(BF16)
    return y.to(BF16) + bias.to(BF16) if rounded == "before the bias" else (y + bias.float()).to(BF16)


def w4_product(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    per_token: Tensor,
    bias: Tensor,
    low_first: bool = True,
    signed: int = 8,
    side_by_side: bool = True,
    scale_at: str = "groups",
    in_order: bool = True,
    token_at: str = "end",
    along_inputs: bool = False,
) -> Tensor:
    halves = [w & 15, w >> 4]
    nibbles = torch.stack(halves if low_first else halves[::-1], 1 if along_inputs else -1)
    nibbles = nibbles.reshape(INPUTS, OUTPUTS) if along_inputs else nibbles.flatten(-2)
    rows, weight = x.int(), ((nibbles ^ signed).to(torch.int8) - signed).int()
    if side_by_side:
        rows, weight = rows.unflatten(-1, (GROUPS, -1)).transpose(0, 1), weight.unflatten(0, (GROUPS, -1))
    else:
        rows, weight = rows.unflatten(-1, (-1, GROUPS)).permute(2, 0, 1), weight.unflatten(0, (-1, GROUPS))
        weight = weight.transpose(0, 1)
    parts = torch.bmm(rows, weight).float()
    tokens = per_token.unsqueeze(-1)
    parts = parts * scale.unsqueeze(1) if scale_at == "groups" else parts
    parts = parts * tokens if token_at == "groups" else parts
    first = torch.zeros(GROUPS, dtype=torch.int64)
    y = torch.zeros_like(parts[:1]).index_add(0, first, parts)[0] if in_order else parts.sum(0)
    y = y * scale[0] if scale_at == "sum" else y
    y = y if token_at == "groups" else y * tokens
    return (y + bias.float()).to(BF16)


def split_product(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    assist: Tensor,
    per_token: Tensor,
    high_by: int = 16,
    low_less: int = 8,
    leaves_as: torch.dtype = torch.float16,
    scaled: str = "before it leaves",
    assist_at: str = "sum",
    in_order: bool = True,
    upper_bits: bool = False,
    low_first: bool = True,
) -> Tensor:
    rows, held = x.int(), w.view(torch.uint8)
    nibbles = torch.stack([held & 15, held >> 4] if low_first else [held >> 4, held & 15], -1).flatten(-2)
    weight = ((nibbles ^ 8).to(torch.int8) - 8).int().unflatten(0, (GROUPS, -1))
    scales = (scale >> 32 if upper_bits else scale).int().view(FP32).unsqueeze(1)

    def part(half: Tensor) -> Tensor:
        total = torch.bmm(half.unflatten(-1, (GROUPS, -1)).transpose(0, 1), weight).float()
        left = (total * scales if scaled == "before it leaves" else total).to(leaves_as).float()
        left = left * scales if scaled == "after it leaves" else left
        first = torch.zeros(GROUPS, dtype=torch.int64)
        return torch.zeros_like(left[:1]).index_add(0, first, left)[0] if in_order else left.sum(0)

    y, tokens = part(rows >> 4) * high_by + part((rows & 15) - low_less), per_token.unsqueeze(-1)
    if assist_at == "end":
        return (y * tokens + assist).to(BF16)
    return ((y if assist_at == "nowhere" else y + assist) * tokens).to(BF16)


def widened_product(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    offset: Tensor,
    bias: Tensor,
    offset_at: str = "before the scale",
    taken_off: bool = False,
    side_by_side: bool = True,
    scale_at: str = "weight",
    rounded: bool = True,
    in_half: bool = False,
    bias_at: str = "end",
    one_bias: bool = False,
) -> Tensor:
    wide = torch.float32 if not in_half else BF16
    shape, axis = ((GROUPS, -1), 1) if side_by_side else ((-1, GROUPS), 0)
    values, scale, offset = w.to(wide).unflatten(0, shape), scale.to(wide), offset.to(wide)
    if offset_at == "before the scale":
        values = values - offset.unsqueeze(axis) if taken_off else values + offset.unsqueeze(axis)
    values = values * scale.unsqueeze(axis) if scale_at == "weight" else values
    values = values + offset.unsqueeze(axis) if offset_at == "after the scale" else values
    weight = values.flatten(0, 1)
    y = torch.mm(x.float(), (weight.to(BF16) if rounded else weight).float())
    y = y if scale_at == "weight" else y * scale[0]
    bias = bias[:1] if one_bias else bias
    return y.to(BF16) + bias if bias_at == "rounded" else (y + bias.float()).to(BF16)


def experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    w_gate_up: Tensor,
    s_gate_up: Tensor,
    w_down: Tensor,
    s_down: Tensor,
    again: bool = True,
    weighted: str = "fp32",
    next_scale: bool = False,
    up_first: bool = False,
    rounded: bool = True,
    by_tensor: bool = False,
    activation: Callable[[Tensor], Tensor] = F.silu,
) -> Tensor:
    chosen = ids.reshape(-1)
    rows, per_token = int8_rows(x.reshape(-1, x.shape[-1]))
    per_token = per_token.amax().expand_as(per_token) if by_tensor else per_token
    rows, per_token = (
        each.unsqueeze(1).expand(-1, ids.shape[1], *each.shape[1:]).flatten(0, 1) for each in (rows, per_token)
    )

    def layer(rows: Tensor, per_token: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        total = torch.bmm(rows.int().unsqueeze(1), take(w, chosen).int()).squeeze(1).float()
        of = (chosen + 1) % scale.shape[0] if next_scale else chosen
        y = total * take(scale, of) * per_token.unsqueeze(-1)
        return y.to(BF16) if rounded else y

    gate, up = layer(rows, per_token, w_gate_up, s_gate_up).chunk(2, dim=-1)
    hidden = activation(up) * gate if up_first else activation(gate) * up
    rows, per_token = int8_rows(hidden) if again else (saturated(hidden.float()), per_token)
    outputs = layer(rows, per_token, w_down, s_down)
    share = weights.reshape(-1).unsqueeze(-1)
    return combined(outputs * (share.to(BF16) if weighted == "bf16" else share), x, ids)


def norm_rows(
    x: Tensor,
    residual: Tensor,
    w: Tensor,
    factor: Tensor,
    offset: Tensor,
    reads: str = "norm",
    rounded: bool = True,
    zero_point: str = "sum",
    divide: bool = False,
    dynamic: bool = False,
    summed: str = "rounded",
) -> tuple[Tensor, ...]:
    total = x + residual if summed == "rounded" else x.float() + residual.float()
    hidden = rms_norm(total, w, 1e-5)
    if not rounded:
        hidden = w.float() * (total.float() * torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + 1e-5))
    read = (hidden if reads == "norm" else total).view(-1, x.shape[-1])
    if dynamic:
        return *int8_rows(read), hidden, total
    values = read.float() / factor.float() if divide else read.float() * factor.float()
    if zero_point == "after":
        return saturated(values) + offset.to(torch.int8), hidden, total
    return saturated(values + offset.float()), hidden, total


def drawn_product(dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, w = (torch.randint(-99, 99, shape).to(dtype) for shape in ((TOKENS, INPUTS), (INPUTS, OUTPUTS)))
    return x, w, torch.rand(OUTPUTS) * 1e-3, torch.rand(TOKENS), torch.randn(OUTPUTS)


def drawn_w4() -> tuple[Tensor, ...]:
    x, w = Int8.drawn(TOKENS, INPUTS), torch.randint(0, 256, (INPUTS, OUTPUTS // 2), dtype=torch.uint8)
    return x, w, torch.rand(GROUPS, OUTPUTS), torch.rand(TOKENS), torch.randn(OUTPUTS)


def drawn_split() -> tuple[Tensor, ...]:
    x, w = Int8.drawn(TOKENS, INPUTS), torch.randint(-(2**31), 2**31, (INPUTS, 1)).int()
    scale = torch.rand(GROUPS, 8).view(torch.int32).long() + (1 << 40)  # the upper half is not read
    return x, w, scale, torch.randn(8), torch.rand(TOKENS)


def drawn_widened() -> tuple[Tensor, ...]:
    x, scale, offset = torch.randn(TOKENS, INPUTS), torch.rand(GROUPS, OUTPUTS), torch.randn(GROUPS, OUTPUTS)
    return x.to(BF16), Int8.drawn(INPUTS, OUTPUTS), scale.to(BF16), offset.to(BF16), torch.randn(OUTPUTS).to(BF16)


def drawn_experts() -> tuple[Tensor, ...]:
    ids = torch.stack([torch.randperm(5)[:3] for _ in range(TOKENS)])
    held = Int8.drawn(5, INPUTS, 16), torch.rand(5, 16) * 1e-3, Int8.drawn(5, 8, INPUTS), torch.rand(5, INPUTS) * 1e-2
    return torch.randn(2, TOKENS // 2, INPUTS).to(BF16), torch.rand(TOKENS, 3), ids, *held


def drawn_norm_rows() -> tuple[Tensor, ...]:
    x, residual = torch.randn(2, TOKENS, INPUTS).to(BF16).unbind(0)
    w = (torch.rand(INPUTS) + 0.5).to(BF16)
    return x, residual, w, (torch.rand(INPUTS) * 30 + 1).to(BF16), torch.randint(-9, 9, (INPUTS,)).to(BF16)


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Tensor, ...]], dict[str, Any]]] = {
    "fp8_quantize": (fp8_rows, lambda: (torch.randn(TOKENS, INPUTS) * 9,), {}),
    "fp8_linear": (product, lambda: drawn_product(FP8), {}),
    "quant_linear": (product, lambda: drawn_product(torch.int8), {"wide": torch.int32}),
    "w4_linear": (w4_product, drawn_w4, {}),
    "split_w4_linear": (split_product, drawn_split, {}),
    "weight_only_linear": (widened_product, drawn_widened, {}),
    "quant_grouped_mlp": (experts, drawn_experts, {}),
    "norm_quantize": (norm_rows, drawn_norm_rows, {}),
    "norm_dynamic_quantize": (norm_rows, drawn_norm_rows, {"dynamic": True}),
}
"""For each pattern the function that is it with these keywords, and arguments."""
