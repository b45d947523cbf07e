"""Random arguments of the patterns in codes, at the shapes of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from glmfuse.patterns.int4 import pack_int4

Draw = Callable[..., Tensor]
Sizes = Any
"""A `Geometry`; that module reads this one."""

_SPREAD: Final = {torch.int8: 45.0, torch.float8_e4m3fn: 64.0}
"""Scale of weights' codes: of int8 a few are at its ends."""

_GROUP: Final = 256
"""Inputs of a group of W4A8."""

_ROWS: Final = 36.0
"""About the scale of a row's codes, where `factor` makes them of what is normalised."""


@dataclass(frozen=True, slots=True)
class Coded:
    """How a scheme's layers are drawn. code: dtype of its weights. is_static: scales known before, and int32 biases."""

    code: torch.dtype
    is_static: bool = False

    def layer(self, name: str, inputs: int, outputs: int, draw: Draw, scale: float = 1.0) -> dict[str, Tensor]:
        """A weight [in, out], a transpose of what is held, its scale, and its int32 bias; results of about `scale`."""
        held = draw(outputs, inputs, scale=_SPREAD[self.code], wide=True)
        held = held.round().clamp(-128, 127) if self.code == torch.int8 else held.clamp(-448, 448)
        rows = _ROWS if self.is_static else 1.0  # the scale of each token undoes its codes
        spread = scale / (rows * _SPREAD[self.code] * inputs**0.5)
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


def packed_feed_forward(at: Sizes, tokens: int, draw: Draw) -> dict[str, Any]:
    """The arguments of `swiglu_mlp_w4a8_dynamic`: up in groups of 256 inputs, where they divide, down by channels."""
    groups = at.hidden // _GROUP if at.hidden % _GROUP == 0 else 2
    layers = (
        ("gate", at.hidden, at.inter, groups),
        ("up", at.hidden, at.inter, groups),
        ("down", at.inter, at.hidden, 1),
    )
    drawn = {"x": draw(tokens, at.hidden)}
    for name, inputs, outputs, parts in layers:
        codes = draw(inputs, outputs, scale=4.0, wide=True).round().clamp(-8, 7).to(torch.int8)
        spread = 1.0 / (4.0 * inputs**0.5)
        drawn[f"w_{name}"] = pack_int4(codes)
        drawn[f"s_{name}"] = draw(parts, outputs, wide=True).abs().clamp(0.2, 2.0) * spread
    return drawn


def quantized(at: Sizes, tokens: int, draw: Draw) -> dict[str, Any]:
    """The arguments of `quantize`: a scale for each channel, and some numbers beyond int8."""
    scales = {"scale": draw(at.hidden, scale=8.0, offset=40.0), "offset": draw(at.hidden, scale=5.0)}
    return {"x": draw(tokens, at.hidden, scale=1.5), **scales, "inverse": None, "divide": False}


def quantized_rows(at: Sizes, tokens: int, draw: Draw, code: torch.dtype) -> dict[str, Tensor]:
    """Rows in codes and their scales, none of which is the scale that another row has; those of no x in particular."""
    rows = draw(tokens, at.hidden, scale=_SPREAD[code], wide=True)
    rows = rows.round().clamp(-128, 127) if code == torch.int8 else rows.clamp(-448, 448)
    return {"rows": rows.to(code), "per_token": draw(tokens, scale=0.2, offset=1.0, wide=True).abs() / _SPREAD[code]}


def quant_linear(at: Sizes, tokens: int, draw: Draw) -> dict[str, Any]:
    """The arguments of `quant_linear`, with all that may be there."""
    out = at.heads * at.head_dim
    layer = Coded(torch.int8, is_static=True).layer("x", at.hidden, out, draw)
    return {
        "x": draw(tokens, at.hidden, scale=40.0, wide=True).round().clamp(-128, 127).to(torch.int8),
        "w": layer["w_x"],
        "scale": layer["s_x"],
        "per_token": draw(tokens, scale=0.1, offset=1.0, wide=True).abs(),
        "quant_bias": layer["c_x"],
        "bias": draw(out, scale=0.1),
        "dtype": draw(1).dtype if draw(1).dtype != torch.float32 else torch.bfloat16,
    }


W8A8: Final = Coded(torch.int8, is_static=True)
CODED: Final[Mapping[str, Coded]] = {"w8a8_dynamic": Coded(torch.int8), "fp8_per_token": Coded(torch.float8_e4m3fn)}
"""The schemes that quantise each row by itself."""


def merged(values: Mapping[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """The arguments with the weights, scales and biases of several projections in the first one's, as they are held."""
    together = dict(values)
    for kind in "wscb":
        given = [values[f"{kind}_{part}"] for part in parts if values.get(f"{kind}_{part}") is not None]
        if given:
            held = kind == "w" and given[0].t().is_contiguous()
            joined = torch.cat([w.t() for w in given]).t() if held else torch.cat(given, dim=-1)
            together |= {f"{kind}_{part}": None for part in parts} | {f"{kind}_{parts[0]}": joined}
    return together
