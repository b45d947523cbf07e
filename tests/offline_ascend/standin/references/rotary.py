"""Rotary embeddings: x * cos + rotated(x) * sin in fp32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference, Unsupported, absent, only

MODES = ("half", "interleave")


def rotated(x: Tensor, mode: str) -> Tensor:
    """(-x2, x1) of the two halves, or of neighbours.  [..., width] -> the same."""
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    if mode == "interleave":
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    raise Unsupported(f"rotary mode {mode!r}; there are {MODES}")


def turn(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    """One rounding at the end; cos and sin broadcast."""
    wide = x.float()
    return (wide * cos.float() + rotated(wide, mode) * sin.float()).to(x.dtype)


def rotary_mul(
    input: Tensor,
    r1: Tensor,
    r2: Tensor,
    rotary_mode: str = "half",
    rotate: Tensor | None = None,
) -> Tensor:
    """The whole width is turned: of a head of 128 with 64 rotary dims the caller gives the 64."""
    absent("npu_rotary_mul", rotate=rotate)
    return turn(input, r1, r2, rotary_mode)


def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """Query and key, by the same cos and sin."""
    only("npu_apply_rotary_pos_emb", layout=(layout, "BSND"))
    return turn(query, cos, sin, rotary_mode), turn(key, cos, sin, rotary_mode)


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: list[int] | None = None,
    rotary_mode: str = "half",
    cache_mode: str = "default",
) -> tuple[Tensor, Tensor]:
    """One position for each token, looked up in a cache of cos beside sin [positions, rotary dims].

    query and key are [tokens, heads * head_size]; the dims of a head beyond the cache's width stay.
    """
    only("npu_mrope", axes_of_positions=(positions.dim(), 1), cache_mode=(cache_mode, "default"))
    only("npu_mrope", mrope_section=(list(mrope_section or ()), [], [0, 0, 0]))
    cos, sin = (_spread(half, rotary_mode).unsqueeze(1) for half in cos_sin_cache[positions.long()].chunk(2, -1))
    return _heads(query, cos, sin, head_size, rotary_mode), _heads(key, cos, sin, head_size, rotary_mode)


def _spread(half: Tensor, mode: str) -> Tensor:
    return torch.cat((half, half), -1) if mode == "half" else half.repeat_interleave(2, -1)


def _heads(x: Tensor, cos: Tensor, sin: Tensor, head_size: int, mode: str) -> Tensor:
    heads = x.unflatten(-1, (-1, head_size))
    width = cos.shape[-1]
    turned = turn(heads[..., :width], cos, sin, mode)
    return torch.cat((turned, heads[..., width:]), -1).reshape(x.shape)


OPS = {
    "npu_rotary_mul": Reference(rotary_mul),
    "npu_apply_rotary_pos_emb": Reference(apply_rotary_pos_emb),
    "npu_mrope": Reference(mrope),
}
