"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern


def _swap_halves(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a)"""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def _swap_neighbours(x: Tensor) -> Tensor:
    """(a0, b0, a1, b1, ...) -> (-b0, a0, -b1, a1, ...)"""
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


@pattern(dims={"x": "... 2*R+P", "cos": "... 2*R", "sin": "... 2*R"}, cases=({}, {"P": 0}))
def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first 2R channels in pairs: (a, b) -> (a cos - b sin, b cos + a sin); pass the rest.

    x [..., head_dim], cos and sin [..., 2R] broadcast against x -> [..., head_dim]. A pair is channels i and
    i + R, or with `interleaved` 2i and 2i + 1; cos and sin lie as the channels do. Source: Su et al. 2021,
    equation 34, which is interleaved, as in GLM-4; halves as in GPT-NeoX and GLM-4.5, which turns half of each
    head.
    """
    turned = cos.shape[-1]
    head, rest = x[..., :turned], x[..., turned:]
    swapped = _swap_neighbours(head) if interleaved else _swap_halves(head)
    out = head * cos + swapped * sin
    return torch.cat([out, rest], dim=-1)


@rotary.constraint
def _(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    require(cos.shape[-1] % 2 == 0, "cos must have an even number of channels", cos.shape[-1])
    require(cos.shape == sin.shape, "cos and sin must have one shape", f"{tuple(cos.shape)}, {tuple(sin.shape)}")
