"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern


@pattern(dims={"x": "... 2*R+P", "cos": "... 2*R", "sin": "... 2*R"}, cases=({}, {"P": 0}))
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2R channels by halves: (a, b) -> (a cos - b sin, b cos + a sin); pass the rest.

    x [..., head_dim], cos and sin [..., 2R] broadcast against x -> [..., head_dim].
    Source: Su et al. 2021, equation 34, in the half-rotation layout of GPT-NeoX; GLM-4.5 turns half of
    each head.
    """
    turned = cos.shape[-1]
    head, rest = x[..., :turned], x[..., turned:]
    first, second = head[..., : turned // 2], head[..., turned // 2 :]
    out = head * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([out, rest], dim=-1)


@rotary.constraint
def _(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    require(cos.shape[-1] % 2 == 0, "cos must have an even number of channels", cos.shape[-1])
    require(cos.shape == sin.shape, "cos and sin must have one shape", f"{tuple(cos.shape)}, {tuple(sin.shape)}")
