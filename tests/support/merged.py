"""GLM layers with merged weights, as serving code holds them: q/k/v in one matrix, gate and up in one."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class MergedMLP(nn.Module):
    """Gate and up projections of a GLM MLP as one matrix."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self.down_proj = mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class _Part(nn.Module):
    """One projection of a merged matrix, which the first one computes for all."""

    def __init__(self, merged: MergedQKV, index: int) -> None:
        super().__init__()
        object.__setattr__(self, "merged", merged)
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.merged(x)[self.index]


class MergedQKV(nn.Module):
    """q, k and v of a GLM attention as one matrix; called three times, CSE leaves one product."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.widths = [part.weight.shape[0] for part in parts]
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
        has_bias = parts[0].bias is not None
        self.bias = nn.Parameter(torch.cat([part.bias for part in parts])) if has_bias else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.linear(x, self.weight, self.bias).split(self.widths, dim=-1)


def merge_weights(model: Any) -> Any:
    """A copy of a GLM whose dense and shared MLPs and attention projections are merged."""
    merged = copy.deepcopy(model)
    for layer in merged.model.layers:
        qkv = MergedQKV(layer.self_attn)
        layer.self_attn.qkv = qkv
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            setattr(layer.self_attn, name, _Part(qkv, index))
        if hasattr(layer.mlp, "shared_experts"):
            layer.mlp.shared_experts = MergedMLP(layer.mlp.shared_experts)
        else:
            layer.mlp = MergedMLP(layer.mlp)
    return merged
