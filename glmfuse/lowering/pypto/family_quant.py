"""Random arguments of the patterns in codes, at the shapes of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

Draw = Callable[..., Tensor]
Sizes = Any
"""A `Geometry`; that module reads this one."""

_SPREAD: Final = {torch.int8: 45.0, torch.float8_e4m3fn: 64.0}
"""Scale of weights' codes: of int8 a few are at its ends."""

_ROWS: Final = {torch.int8: 36.0, torch.float8_e4m3fn: 128.0}
"""About the scale of a row's codes: the largest number over the largest of a few thousand normal ones."""


@dataclass(frozen=True, slots=True)
class Coded:
    """How a scheme's layers are drawn. code: dtype of its weights. is_static: scales known before, and int32 biases."""

    code: torch.dtype
    is_static: bool = False

    def layer(self, name: str, inputs: int, outputs: int, draw: Draw, scale: float = 1.0) -> dict[str, Tensor]:
        """A weight [in, out], a transpose of what is held, its scale, and its int32 bias; results of about `scale`."""
        held = draw(outputs, inputs, scale=_SPREAD[self.code], wide=True)
        held = held.round().clamp(-128, 127) if self.code == torch.int8 else held.clamp(-448, 448)
        spread = scale / (_ROWS[self.code] * _SPREAD[self.code] * inputs**0.5)
        drawn = {
            f"w_{name}": held.to(self.code).t(),
            f"s_{name}": draw(outputs, wide=True).abs().clamp(0.2, 2.0) * spread,
        }
        if self.is_static:
            drawn[f"c_{name}"] = draw(outputs, scale=0.3 * scale / spread, wide=True).round().to(torch.int32)
        return drawn

    def front(self, plain: Mapping[str, Any], at: Sizes, draw: Draw, scale: float) -> dict[str, Any]:
        """The arguments of `norm_qkv_rope` in this scheme, from those of the plain one."""
        drawn = {key: value for key, value in plain.items() if key not in ("w_q", "w_k", "w_v")}
        if self.is_static:
            drawn = {key: value for key, value in drawn.items() if not key.startswith("b_")}
            drawn |= {"factor": draw(1, scale=1.0, offset=33.0), "offset": draw(1, offset=-4.0).round()}
            drawn |= {"inverse": None}
        widths = {"q": at.heads * at.head_dim, "k": at.kv_heads * at.head_dim, "v": at.kv_heads * at.head_dim}
        for name, width in widths.items():
            drawn |= self.layer(name, at.hidden, width, draw, scale)
        return drawn

    def feed_forward(self, at: Sizes, tokens: int, draw: Draw) -> dict[str, Any]:
        """The arguments of `swiglu_mlp`."""
        return {
            "x": draw(tokens, at.hidden),
            **self.layer("gate", at.hidden, at.inter, draw),
            **self.layer("up", at.hidden, at.inter, draw),
            **self.layer("down", at.inter, at.hidden, draw),
        }


W8A8: Final = Coded(torch.int8, is_static=True)
CODED: Final[Mapping[str, Coded]] = {"w8a8_dynamic": Coded(torch.int8), "fp8_per_token": Coded(torch.float8_e4m3fn)}
"""The schemes that quantise each row by itself."""
