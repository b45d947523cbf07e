"""Decoder layers of GLM-4.5 as vllm-ascend spells them after AOT, quantised with static scales or per token.

One rank, dense feed-forward, the layer's attention as the opaque operator that it is there. Source: vllm-ascend
182b75e, models patched for Atlas A2 and A3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN, HEADS, KV_HEADS, WIDTH, TURNED, FEED_FORWARD, PLACES = 64, 4, 2, 32, 16, 48, 128
TOKENS = 5
EPS = 1e-5

_VLLM = torch.library.Library("vllm", "FRAGMENT")
_VLLM.define("unified_attention_with_output(Tensor q, Tensor k, Tensor v, Tensor(a!) output, str layer_name) -> ()")


def _mixed(q: Tensor, k: Tensor, v: Tensor, output: Tensor, layer_name: str) -> None:
    """Any function of queries, keys and values will do here."""
    group = q.view(-1, KV_HEADS, HEADS // KV_HEADS, WIDTH)
    output.copy_((group * k.view(-1, KV_HEADS, 1, WIDTH) + v.view(-1, KV_HEADS, 1, WIDTH)).view(output.shape))


_VLLM.impl("unified_attention_with_output", _mixed, "PrivateUse1")
torch.library.register_fake("vllm::unified_attention_with_output", lambda *_: None, lib=_VLLM)


class QuantLinear(nn.Module):
    """A product of int8 activations and weights; weights lie as the operator reads them, [in, out]."""

    def __init__(self, inputs: int, outputs: int, *, dynamic: bool) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.register_buffer("weight", torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8))
        self.register_buffer("deq_scale", torch.rand(outputs) * 2e-4 + 1e-4)
        self.register_buffer("quant_bias", torch.randint(-99, 100, (outputs,), dtype=torch.int32))
        scale = torch.rand(inputs).to(torch.bfloat16) * 0.02 + 0.01
        self.register_buffer("scale", scale)
        self.register_buffer("reciprocal", 1 / scale)
        self.register_buffer("offset", torch.randint(-3, 4, (inputs,)).to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        out = {"output_dtype": torch.bfloat16}
        if self.dynamic:
            rows, scale = torch.ops.npu.npu_dynamic_quant(x, dst_type=torch.int8)
            return torch.ops.npu.npu_quant_matmul(rows, self.weight, self.deq_scale, pertoken_scale=scale, **out)
        rows = torch.ops.vllm.quantize(x, self.scale, self.reciprocal, self.offset)
        return torch.ops.npu.npu_quant_matmul(rows, self.weight, self.deq_scale, bias=self.quant_bias, **out)


class Layer(nn.Module):
    """Norm, q/k/v, rotary, attention, output, norm, feed-forward; the residual goes on beside the hidden states."""

    def __init__(self, *, dynamic: bool) -> None:
        super().__init__()
        self.norms = nn.ParameterList([_norm(HIDDEN), _norm(HIDDEN), _norm(WIDTH), _norm(WIDTH)])
        self.register_buffer("cos_sin", torch.randn(PLACES, TURNED).to(torch.bfloat16))
        heads = (HEADS + 2 * KV_HEADS) * WIDTH
        self.qkv = QuantLinear(HIDDEN, heads, dynamic=dynamic)
        self.out = QuantLinear(HEADS * WIDTH, HIDDEN, dynamic=dynamic)
        self.gate_up = QuantLinear(HIDDEN, 2 * FEED_FORWARD, dynamic=dynamic)
        self.down = QuantLinear(FEED_FORWARD, HIDDEN, dynamic=dynamic)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        hidden, residual = self.normed(hidden, residual, self.norms[0])
        q, k, v = self.qkv(hidden).split([HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH], dim=-1)
        q, k = self.of_heads(q, self.norms[2]), self.of_heads(k, self.norms[3])
        q, k = torch.ops.vllm.npu_rotary_embedding(positions, q, k, self.cos_sin, WIDTH, TURNED, True)
        mixed = torch.empty_like(q)
        torch.ops.vllm.unified_attention_with_output(q, k, v, mixed, "model.layers.0.self_attn.attn")
        hidden, residual = self.normed(self.out(mixed), residual, self.norms[1])
        return self.down(torch.ops.npu.npu_swiglu(self.gate_up(hidden))), residual

    def normed(self, hidden: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed, _, total = torch.ops._C_ascend.npu_add_rms_norm_bias(hidden, residual, weight, None, EPS)
        return normed, total

    def of_heads(self, x: Tensor, weight: Tensor) -> Tensor:
        heads = x.view(*x.shape[:-1], x.shape[-1] // WIDTH, WIDTH)
        return torch.ops.npu.npu_rms_norm(heads, weight, EPS)[0].view(x.shape)


def _norm(size: int) -> nn.Parameter:
    return nn.Parameter((torch.randn(size) * 0.2 + 1).to(torch.bfloat16))


def step() -> tuple[Tensor, Tensor, Tensor]:
    """Positions, hidden states and residual of a few tokens, on the npu."""
    hidden, residual = (torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16).npu() for _ in range(2))
    return torch.randint(0, PLACES, (TOKENS,)).npu(), hidden, residual
