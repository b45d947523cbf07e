"""The shapes that kernels meet: the models of the family, cut over 1 to 16 devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from glmfuse.errors import OptionError
from glmfuse.lowering.pypto.family_quant import (
    CODED,
    W8A8,
    Coded,
    Draw,
    packed_feed_forward,
    quant_linear,
    quantized,
    quantized_rows,
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one decoder layer on one device; `inter` is the shared expert's width.

    cached: tokens in a cache at most, block: of these in one block of a paged cache.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    experts: int
    top_k: int
    inter: int
    n_group: int = 1
    topk_group: int = 1
    scale: float = 2.5
    qk_norm: bool = True
    cached: int = 1024
    block: int = 128

    def split(self, devices: int) -> Geometry:
        """One device's part under tensor parallelism; kv heads are repeated where there are too few."""
        return replace(
            self,
            heads=self.heads // devices,
            kv_heads=max(1, self.kv_heads // devices),
            inter=self.inter // devices,
        )


_GLM_45 = Geometry(5120, 96, 8, 128, 64, 160, 8, 1536)
_AIR = Geometry(4096, 96, 8, 128, 64, 128, 8, 1408, scale=1.0, qk_norm=False)

MODELS: Final[Mapping[str, Geometry]] = MappingProxyType(
    {
        # Sizes: the config.json of each model; 4.6 and 4.7 differ from 4.5 in context length alone.
        "glm-4.5": _GLM_45,
        "glm-4.5-air": _AIR,
        "glm-4.6": _GLM_45,
        "glm-4.7": _GLM_45,
        "tiny": Geometry(64, 8, 2, 16, 8, 8, 2, 32, n_group=4, topk_group=2, cached=320, block=32),
    }
)
DEVICES: Final = (1, 2, 4, 8, 16)


def geometry(name: str) -> Geometry:
    """The geometry of `glm-4.5/tp8` or `tiny`; OptionError lists the names there are."""
    model, _, part = name.partition("/")
    if model in MODELS and not part:
        return MODELS[model]
    if model in MODELS and part in [f"tp{devices}" for devices in DEVICES]:
        return MODELS[model].split(int(part[2:]))
    valid = [*MODELS, *(f"{model}/tp{devices}" for model in MODELS if model != "tiny" for devices in DEVICES)]
    raise OptionError.unknown("shape", [name], valid)


_MANY = 128

_Arguments = Callable[["Geometry", int, Draw], dict[str, Any]]

_EPS = 1e-5
_SMALL = _EPS**0.5
"""Scale of what is normalised: at 1 no test could tell whether eps is there."""


def arguments(pattern: str, at: Geometry, tokens: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Random arguments of a pattern at a geometry, by name; weights scaled so that outputs are of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, offset: float = 0.0, wide: bool = False) -> Tensor:
        values = torch.randn(*shape, generator=generator) * scale + offset
        return values if wide else values.to(dtype)

    return _ARGUMENTS[pattern](at, tokens, draw)


def layouts(pattern: str, at: Geometry, tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """The same arguments as tensors without data."""

    def draw(*shape: int, scale: float = 1.0, offset: float = 0.0, wide: bool = False) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32 if wide else dtype, device="meta")

    return _ARGUMENTS[pattern](at, tokens, draw)


def _rms_norm(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    x = draw(tokens, at.hidden, scale=_SMALL)
    return {"x": x, "w": draw(at.hidden, scale=0.2, offset=1.0), "eps": _EPS}


def _add_rms_norm(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    return {**_rms_norm(at, tokens, draw), "residual": draw(tokens, at.hidden, scale=_SMALL)}


def _linear(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    out = at.heads * at.head_dim
    weight = draw(out, at.hidden, scale=at.hidden**-0.5)
    return {"x": draw(tokens, at.hidden), "w": weight, "b": draw(out, scale=0.1)}


def _rotary(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    heads = draw(1, tokens, at.heads, at.head_dim).transpose(1, 2)
    return {"x": heads, **_angles(at, tokens, draw), "interleaved": False}


def _angles(at: Geometry, tokens: int, draw: Draw) -> dict[str, Tensor]:
    """Every channel with an angle of its own, so that no half can stand in for the other."""
    angle = draw(1, 1, tokens, at.rotary, scale=3.0, wide=True)
    dtype = draw(1).dtype
    return {"cos": angle.cos().to(dtype), "sin": angle.sin().to(dtype)}


def _swiglu(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    return {"gate": draw(tokens, at.inter), "up": draw(tokens, at.inter)}


def _route_topk(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    routed = _gate_topk(at, tokens, draw)
    logits = draw(tokens, at.experts, wide=True)
    return {"logits": logits, **{name: routed[name] for name in routed if name not in ("x", "w")}}


def _gate_topk(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    """The router in fp32, as vLLM and transformers from 5.24 on hold it."""
    return {
        "x": draw(tokens, at.hidden),
        "w": draw(at.experts, at.hidden, scale=at.hidden**-0.5, wide=True),
        "bias": draw(at.experts, scale=0.1, wide=True),
        "top_k": at.top_k,
        "n_group": at.n_group,
        "topk_group": at.topk_group,
        "renormalize": True,
        "scale": at.scale,
    }


def _swiglu_mlp(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    return {
        "x": draw(tokens, at.hidden),
        "w_gate": draw(at.inter, at.hidden, scale=at.hidden**-0.5),
        "w_up": draw(at.inter, at.hidden, scale=at.hidden**-0.5),
        "w_down": draw(at.hidden, at.inter, scale=at.inter**-0.5),
    }


def _norm_qkv_rope(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    widths = {"q": at.heads * at.head_dim, "k": at.kv_heads * at.head_dim, "v": at.kv_heads * at.head_dim}
    gains = {f"w_{name}_norm": draw(at.head_dim, scale=0.2, offset=1.0) if at.qk_norm else None for name in "qk"}
    return {
        "x": draw(1, tokens, at.hidden, scale=_SMALL),
        "residual": draw(1, tokens, at.hidden, scale=_SMALL),
        "w_norm": draw(at.hidden, scale=0.2, offset=1.0),
        **{f"w_{name}": draw(width, at.hidden, scale=_SMALL * at.hidden**-0.5) for name, width in widths.items()},
        **{f"b_{name}": draw(width, scale=0.3 * _SMALL) for name, width in widths.items()},
        **gains,
        **_angles(at, tokens, draw),
        "eps": _EPS,
        "num_heads": at.heads,
        "num_kv_heads": at.kv_heads,
        "head_dim": at.head_dim,
        "interleaved": False,
    }


def _with_cache(at: Geometry, sequences: int) -> Geometry:
    """The sizes, with a short cache for many sequences: the interpreter's memory grows with both."""
    return at if sequences <= _MANY else replace(at, cached=16, block=16)


def _attention(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    at = _with_cache(at, tokens)
    kept = at.cached - 3  # no multiple of anything
    mask = draw(tokens, 1, 1, kept, wide=True) > 0
    mask[..., 0] = True
    mask[0, ..., kept // 2 :] = False
    return {
        "q": draw(tokens, at.heads, 1, at.head_dim),
        "k": draw(tokens, at.kv_heads, kept, at.head_dim),
        "v": draw(tokens, at.kv_heads, kept, at.head_dim),
        "mask": mask if tokens % 2 else None,
        "scale": at.head_dim**-0.5,
        "causal": False,
    }


def _paged_attention(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    """Blocks in any order, some in no table; the first sequence fills its blocks, the second has one token."""
    at = _with_cache(at, tokens)
    each = at.cached // at.block
    blocks = tokens * each + 3
    order = draw(blocks, wide=True).argsort()[: tokens * each]
    lengths = (draw(tokens, wide=True).abs() * at.cached / 3).int().clamp(1, at.cached)
    lengths[:2] = torch.tensor([at.cached, 1])[:tokens]
    return {
        "q": draw(tokens, at.heads, at.head_dim),
        "k_cache": draw(blocks, at.block, at.kv_heads, at.head_dim),
        "v_cache": draw(blocks, at.block, at.kv_heads, at.head_dim),
        "table": order.int().view(tokens, each),
        "lengths": lengths,
        "scale": at.head_dim**-0.5,
    }


def _norm_quantize(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
    given = _add_rms_norm(at, tokens, draw)
    return {"x": given["x"], "residual": given["residual"], "w_norm": given["w"], "eps": _EPS}


def _of_rows(block: _Arguments, code: torch.dtype) -> _Arguments:
    def drawn(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
        values = block(at, tokens, draw)
        return {"x": values["x"], **quantized_rows(at, tokens, draw, code), **_without(values, "x")}

    return drawn


def _coded_front(scheme: Coded) -> _Arguments:
    def front(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
        return scheme.front(_norm_qkv_rope(at, tokens, draw), at, draw, _SMALL)

    return front


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _coded_router(scheme: Coded) -> _Arguments:
    def router(at: Geometry, tokens: int, draw: Draw) -> dict[str, Any]:
        routed = _gate_topk(at, tokens, draw)
        return {**scheme.feed_forward(at, tokens, draw), "w_router": routed["w"], **_without(routed, "x", "w")}

    return router


_ARGUMENTS: Mapping[str, _Arguments] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rotary": _rotary,
    "swiglu": _swiglu,
    "route_topk": _route_topk,
    "norm_qkv_rope": _norm_qkv_rope,
    "gate_topk": _gate_topk,
    "swiglu_mlp": _swiglu_mlp,
    "attention": _attention,
    "paged_attention": _paged_attention,
    "quantize": quantized,
    "dynamic_quantize": lambda at, tokens, draw: {"x": draw(tokens, at.hidden)},
    "quant_linear": quant_linear,
    "norm_dynamic_quantize": _norm_quantize,
    "swiglu_mlp_w4a8_dynamic": packed_feed_forward,
    "quant_mlp_w4a8_dynamic": _of_rows(packed_feed_forward, torch.int8),
    "norm_qkv_rope_w8a8": _coded_front(W8A8),
    **{f"norm_qkv_rope_{name}": _coded_front(scheme) for name, scheme in CODED.items()},
    **{f"swiglu_mlp_{name}": scheme.feed_forward for name, scheme in CODED.items()},
    **{f"quant_mlp_{name}": _of_rows(scheme.feed_forward, scheme.code) for name, scheme in CODED.items()},
    **{f"router_mlp_{name}": _coded_router(scheme) for name, scheme in CODED.items()},
    **{f"router_quant_mlp_{name}": _of_rows(_coded_router(scheme), scheme.code) for name, scheme in CODED.items()},
}
