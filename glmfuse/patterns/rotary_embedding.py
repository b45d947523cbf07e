"""Rotary position embedding by a table of all positions, as serving engines keep it."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.rotary import rotary


def _both(angles: Tensor, interleaved: bool) -> Tensor:
    """The angle of a pair for both of its channels."""
    return angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat([angles, angles], dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, interleaved: bool) -> Tensor:
    heads = x.view(x.shape[0], -1, head_dim)
    return rotary(heads, cos, sin, interleaved).view(x.shape)


@pattern(
    dims={"positions": "T", "q": "T N*D", "k": "T K*D", "cos_sin": "P 2*R", "head_dim": "D"},
    examples=({"D": 26, "R": 5}, {"D": 34, "R": 7}),
    dtypes={"positions": torch.int64},
)
def rotary_embedding(
    positions: Tensor, q: Tensor, k: Tensor, cos_sin: Tensor, head_dim: int, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """The heads of q and k turned by the angles of each token's position; the rest of a head passes.

    positions [tokens] int64, q [tokens, heads * head_dim], k [tokens, kv_heads * head_dim], cos_sin [positions,
    2R] with R cosines and then R sines of 2R channels that turn -> q and k. Source: RotaryEmbedding of vLLM.
    """
    angles = torch.ops.aten.index.Tensor(cos_sin, [positions]).unsqueeze(1)
    cos, sin = (_both(half, interleaved) for half in angles.chunk(2, dim=-1))
    return _turned(q, cos, sin, head_dim, interleaved), _turned(k, cos, sin, head_dim, interleaved)
