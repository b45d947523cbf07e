"""A decoder layer in each quantised scheme, in plain operators: every linear quantises what it reads by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRMSNorm, apply_rotary_pos_emb

from glmfuse.patterns import fp8_grouped_mlp, gate_topk, quant_grouped_mlp, w4_grouped_mlp

BF16, FP32 = torch.bfloat16, torch.float32
HIDDEN, HEADS, KV_HEADS, WIDTH, ROTARY = 64, 4, 2, 16, 8
EXPERTS, GROUPS, ACTIVE, EXPERT_WIDTH, SHARED_WIDTH = 16, 2, 4, 24, 32
GROUP = 8
"""Inputs that share a scale, where the scheme has groups."""


def saturated(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.round(), nan=0.0).clamp(-128, 127).to(torch.int8)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.float().abs().amax(-1)
    factor = torch.full_like(largest, 127.0) / largest
    return saturated(x.float() * factor.unsqueeze(-1)), factor.reciprocal()


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.float().abs().amax(-1)
    factor = torch.full_like(largest, 448.0) / largest
    rows = torch.nan_to_num(x.float() * factor.unsqueeze(-1), nan=0.0).clamp(-448.0, 448.0)
    return rows.to(torch.float8_e4m3fn), factor.reciprocal()


class Known(nn.Module):
    """A W8A8 layer.  `factor` and `offset` may be those of other layers that read the same."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8))
        self.register_buffer("deq_scale", torch.rand(outputs) * 1e-3)
        self.register_buffer("quant_bias", torch.randint(-9999, 9999, (outputs,), dtype=torch.int32))
        self.register_buffer("factor", (torch.rand(1) * 40 + 20).to(BF16))
        self.register_buffer("offset", torch.randint(-9, 9, (1,)).to(BF16))

    def forward(self, x: Tensor) -> Tensor:
        rows = saturated(x.view(-1, x.shape[-1]).float() * self.factor.float() + self.offset.float())
        total = torch.mm(rows.int(), self.weight.t().int()) + self.quant_bias
        return (total.float() * self.deq_scale).to(x.dtype).view(*x.shape[:-1], -1)


class PerToken(nn.Module):
    """A layer whose rows have a scale each: int8 or float8."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", self.drawn(outputs, inputs))
        self.register_buffer("weight_scale", torch.rand(outputs, 1) * 1e-3)
        self.register_buffer("bias", torch.randn(outputs).to(BF16) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self.rows(x.view(-1, x.shape[-1]))
        total = torch.mm(rows.to(self.accumulator), self.weight.t().to(self.accumulator)).float()
        y = total * self.weight_scale.view(-1) * scale.unsqueeze(-1)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class Int8(PerToken):
    accumulator = torch.int32
    rows = staticmethod(int8_rows)

    @staticmethod
    def drawn(*shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8)


class Fp8(PerToken):
    accumulator = torch.float32
    rows = staticmethod(fp8_rows)

    @staticmethod
    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape) * 60).to(torch.float8_e4m3fn)


class Int4(nn.Module):
    """A W4A8 layer with scales for groups of inputs; two outputs to a byte."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(0, 256, (inputs, outputs // 2), dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.rand(inputs // GROUP, outputs) * 1e-2)
        self.register_buffer("bias", torch.randn(outputs).to(BF16) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = int8_rows(x.view(-1, x.shape[-1]))
        groups = self.weight_scale.shape[0]
        nibbles = torch.stack([self.weight & 15, self.weight >> 4], -1).flatten(-2)
        weight = ((nibbles ^ 8).to(torch.int8) - 8).int().view(groups, GROUP, -1)
        sums = torch.bmm(rows.int().view(-1, groups, GROUP).transpose(0, 1), weight).float()
        parts = sums * self.weight_scale.unsqueeze(1)
        first = torch.zeros(groups, dtype=torch.int64)
        y = torch.zeros_like(parts[:1]).index_add(0, first, parts)[0] * scale.unsqueeze(-1)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Scheme:
    """linear: its layers. experts: what its routed experts are. stored: draws their weights [experts, in, out]."""

    linear: Callable[[int, int, bool], nn.Module]
    experts: Any
    stored: Callable[[int, int, int], tuple[Tensor, Tensor]]


def _scaled(kind: type[PerToken]) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    return lambda experts, inputs, outputs: (kind.drawn(experts, inputs, outputs), torch.rand(experts, outputs) * 1e-3)


def _packed(experts: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    weight = torch.randint(0, 256, (experts, inputs, outputs // 2), dtype=torch.uint8)
    return weight, torch.rand(experts, inputs // GROUP, outputs) * 1e-2


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "w8a8": Scheme(Known, quant_grouped_mlp, _scaled(Int8)),
        "w8a8_dynamic": Scheme(Int8, quant_grouped_mlp, _scaled(Int8)),
        "fp8_per_token": Scheme(Fp8, fp8_grouped_mlp, _scaled(Fp8)),
        "w4a8_dynamic": Scheme(Int4, w4_grouped_mlp, _packed),
    }
)


@dataclass(frozen=True)
class Form:
    """How a layer is written: merged projections, biases, norms of the heads."""

    merged: bool = False
    bias: bool = True
    head_norms: bool = True


PLAIN = Form()


class Mlp(nn.Module):
    def __init__(self, scheme: Scheme, merged: bool) -> None:
        super().__init__()
        count = 1 if merged else 2
        self.widen = nn.ModuleList(scheme.linear(HIDDEN, SHARED_WIDTH * 2 // count, False) for _ in range(count))
        self.narrow = scheme.linear(SHARED_WIDTH, HIDDEN, False)
        share_input(self.widen)

    def forward(self, x: Tensor) -> Tensor:
        wide = [layer(x) for layer in self.widen]
        gate, up = wide if len(wide) == 2 else wide[0].chunk(2, dim=-1)
        return self.narrow(nn.functional.silu(gate) * up)


def share_input(layers: Any) -> None:
    """Layers that read the same values have one input scale."""
    for layer in layers:
        if isinstance(layer, Known):
            layer.factor, layer.offset = layers[0].factor, layers[0].offset


class Mixture(nn.Module):
    def __init__(self, scheme: Scheme, merged: bool) -> None:
        super().__init__()
        self.experts = scheme.experts
        self.router = nn.Parameter(torch.randn(EXPERTS, HIDDEN).to(BF16), requires_grad=False)
        self.register_buffer("correction", torch.rand(EXPERTS))
        for name, value in zip(("w", "s"), scheme.stored(EXPERTS, HIDDEN, 2 * EXPERT_WIDTH), strict=True):
            self.register_buffer(f"{name}_gate_up", value)
        for name, value in zip(("w", "s"), scheme.stored(EXPERTS, EXPERT_WIDTH, HIDDEN), strict=True):
            self.register_buffer(f"{name}_down", value)
        self.shared = Mlp(scheme, merged)

    def forward(self, x: Tensor) -> Tensor:
        router = (self.router, self.correction, ACTIVE, GROUPS, 1, True, 1.5)
        weights, ids = gate_topk(x.view(-1, HIDDEN), *router)
        experts = (self.w_gate_up, self.s_gate_up, self.w_down, self.s_down)
        return self.experts(x, weights, ids, *experts) + self.shared(x)


class Layer(nn.Module):
    """A decoder layer between two residual sums: attention over its own tokens, then a mixture of experts."""

    def __init__(self, scheme: str, form: Form = PLAIN) -> None:
        super().__init__()
        made, self.form = SCHEMES[scheme], form
        widths = [HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH]
        widths = [sum(widths)] if form.merged else widths
        self.qkv = nn.ModuleList(made.linear(HIDDEN, width, form.bias) for width in widths)
        share_input(self.qkv)
        self.o = made.linear(HEADS * WIDTH, HIDDEN, False)
        self.norms = nn.ModuleList(drawn_norm(HIDDEN) for _ in range(2))
        self.head_norms = nn.ModuleList(drawn_norm(WIDTH) for _ in range(2 * form.head_norms))
        self.mlp = Mixture(made, form.merged)

    def forward(self, x: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        q, k, v = self.projected(self.norms[0](total))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        attended = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True
        )
        total = total + self.o(attended.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return self.mlp(self.norms[1](total)), total

    def projected(self, hidden: Tensor) -> list[Tensor]:
        made = [layer(hidden) for layer in self.qkv]
        if len(made) == 1:
            made = list(made[0].split([HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH], dim=-1))
        heads = [each.view(*hidden.shape[:-1], -1, WIDTH) for each in made]
        for place, norm in enumerate(self.head_norms):
            heads[place] = norm(heads[place])
        return [each.transpose(1, 2) for each in heads]


def drawn_norm(width: int) -> nn.Module:
    norm = Glm4MoeRMSNorm(width, eps=1e-5)
    norm.weight = nn.Parameter((torch.rand(width) + 0.5).to(BF16), requires_grad=False)
    return norm


def call(batch: int = 2, tokens: int = 5, with_residual: bool = True) -> tuple[Any, ...]:
    """Random arguments of a layer."""
    x, residual = (torch.randn(batch, tokens, HIDDEN).to(BF16) for _ in range(2))
    cos, sin = (torch.randn(batch, tokens, ROTARY).to(BF16) for _ in range(2))
    return x, residual if with_residual else None, cos, sin


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "separate": PLAIN,
        "merged": Form(merged=True),
        "no bias": Form(bias=False),
        "no norms of heads": Form(head_norms=False),
        "merged, bare": Form(merged=True, bias=False, head_norms=False),
    }
)
