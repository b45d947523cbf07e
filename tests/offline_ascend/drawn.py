"""Random arguments of patterns, at sizes that torch_npu's operators take; each seed draws other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from glmfuse.matching.pattern import Variant
from tests.offline_ascend import drawn_quant
from tests.offline_ascend.draw import EPS, Arguments, Draw


def _rms_norm(draw: Draw) -> Arguments:
    lead, hidden = (draw.size(1, 3), draw.size(1, 9)), draw.size(8, 200)
    x = draw.values(*lead, hidden, scale=EPS**0.5)  # at 1 no test could tell whether eps is there
    return {"x": x, "w": draw.values(hidden, scale=0.2, around=1.0), "eps": EPS}


def _add_rms_norm(draw: Draw) -> Arguments:
    norm = _rms_norm(draw)
    return {**norm, "residual": draw.values(*norm["x"].shape, scale=EPS**0.5)}


def _rotary(draw: Draw) -> Arguments:
    """Heads as a layer has them: projected for each token, then transposed."""
    batch, heads, tokens = draw.size(1, 3), draw.size(1, 8), draw.size(1, 9)
    turned, rest = 2 * draw.size(1, 16), draw.sizes.get("P", draw.size(1, 16))
    rows = 1 if draw.flags["interleaved"] else draw.pick(1, batch)
    angle = draw.values(rows, 1, tokens, turned, scale=3.0, wide=True)
    x = draw.values(batch, tokens, heads, turned + rest).transpose(1, 2)
    return {"x": x, "cos": angle.cos().to(draw.dtype), "sin": angle.sin().to(draw.dtype), **draw.flags}


def _linear(draw: Draw) -> Arguments:
    hidden, out = draw.size(8, 64), draw.size(4, 48)
    return {
        "x": draw.values(draw.size(1, 3), draw.size(1, 9), hidden),
        "w": draw.weight(out, hidden),
        **draw.unless_absent(b=draw.values(out)),
    }


def _rotary_embedding(draw: Draw) -> Arguments:
    """Rows of heads, and a table of more positions than there are tokens."""
    tokens, turned = draw.size(1, 9), 2 * draw.size(1, 16)
    head_dim = turned + draw.size(0, 16)
    angle = draw.values(40, turned // 2, scale=3.0, wide=True)
    return {
        "positions": torch.randint(0, 40, (tokens,), generator=draw.generator),
        "q": draw.values(tokens, draw.size(1, 8) * head_dim),
        "k": draw.values(tokens, draw.size(1, 4) * head_dim),
        "cos_sin": torch.cat([angle.cos(), angle.sin()], dim=-1).to(draw.dtype),
        "head_dim": head_dim,
        **draw.flags,
    }


def _swiglu(draw: Draw) -> Arguments:
    rows, width = draw.size(1, 20), draw.size(2, 100)
    gate = draw.values(rows, width if "up" not in draw.absent else 2 * width)
    return {"gate": gate, **draw.unless_absent(up=draw.values(rows, width))}


def _choice(draw: Draw) -> Arguments:
    groups, each = draw.size(1, 4), draw.size(3, 8)
    chosen = draw.size(1, groups)
    return {
        "bias": draw.values(groups * each, scale=0.1, wide=True),
        "top_k": draw.size(1, chosen * each),
        "n_group": groups,
        "topk_group": chosen,
        "scale": draw.random.uniform(0.5, 3.0),
        **draw.flags,
    }


def _route_topk(draw: Draw) -> Arguments:
    choice = _choice(draw)
    return {"logits": draw.values(draw.size(1, 30), len(choice["bias"]), wide=True), **choice}


def _heads(draw: Draw, queries: int) -> Arguments:
    """Queries contiguous as rotary leaves them, keys of a cache, values as they are projected."""
    batch, kv_heads, group = draw.size(1, 3), draw.size(1, 4), draw.size(1, 4)
    tokens, width = draw.size(queries, 40), draw.size(1, 4, by=16)
    return {
        "q": draw.values(batch, kv_heads * group, queries, width),
        "k": draw.values(batch, kv_heads, tokens, width),
        "v": draw.values(batch, tokens, kv_heads, width).transpose(1, 2),
        "scale": width**-0.5,
    }


def _queries(draw: Draw, several: bool = False) -> int:
    many = draw.size(2, 9)
    return draw.sizes.get("S", many if several else draw.pick(1, many))


def _attention(draw: Draw) -> Arguments:
    causal, masked = draw.flags["causal"], "mask" not in draw.absent
    heads = _heads(draw, _queries(draw, several=causal))
    (batch, _, queries, _), tokens = heads["q"].shape, heads["k"].shape[2]
    mask = ~draw.hidden(draw.pick(1, batch), 1, queries, tokens)
    return {**heads, "mask": mask if masked else None, **draw.flags}


def _eager_attention(draw: Draw) -> Arguments:
    heads = _heads(draw, _queries(draw))
    (batch, _, queries, _), tokens = heads["q"].shape, heads["k"].shape[2]
    bias = draw.values(draw.pick(1, batch), 1, queries, tokens)
    bias[..., 1::3] = torch.finfo(draw.dtype).min
    return {**heads, **draw.unless_absent(bias=bias)}


def _paged_attention(draw: Draw) -> Arguments:
    """Blocks in any order; the first sequence fills its blocks, the second has one token."""
    sequences, kv_heads, width = draw.size(2, 4), draw.size(1, 3), draw.size(1, 3, by=16)
    block, each = draw.size(1, 2, by=16), draw.size(1, 3)
    blocks = sequences * each + 2
    table = draw.distinct(sequences * each, blocks, torch.int32).view(sequences, each)
    lengths = draw.ints(1, block * each + 1, sequences, dtype=torch.int32)
    lengths[:2] = torch.tensor([block * each, 1])
    return {
        "q": draw.values(sequences, kv_heads * draw.size(1, 4), width),
        "k_cache": draw.values(blocks, block, kv_heads, width),
        "v_cache": draw.values(blocks, block, kv_heads, width),
        "table": table,
        "lengths": lengths,
        "scale": width**-0.5,
    }


def _cache_update(draw: Draw) -> Arguments:
    """Some rows of a cache, in any order."""
    batch, kv_heads, width, places = draw.size(1, 3), draw.size(1, 4), draw.size(1, 4, by=8), draw.size(4, 30)
    rows = draw.size(1, places)
    return {
        "cache": draw.values(batch, kv_heads, places, width),
        "positions": draw.distinct(rows, places, torch.int64),
        "rows": draw.values(batch, rows, kv_heads, width).transpose(1, 2),
    }


def _grouped_mlp(draw: Draw) -> Arguments:
    batch, tokens, experts = draw.size(1, 3), draw.sizes.get("S", draw.size(1, 9)), draw.size(2, 8)
    hidden, width, active = draw.size(2, 8, by=8), draw.size(1, 6, by=8), draw.size(1, experts)
    scores = draw.values(batch * tokens, experts, wide=True)
    return {
        "x": draw.values(batch, tokens, hidden),
        "weights": scores.softmax(-1)[:, :active],
        "ids": scores.argsort(-1)[:, :active],
        "w_gate_up": draw.weight(experts, 2 * width, hidden),
        "w_down": draw.weight(experts, hidden, width),
    }


def _moe(draw: Draw) -> Arguments:
    choice = _choice(draw)
    batch, tokens, experts = draw.size(1, 3), draw.size(1, 9), len(choice["bias"])
    hidden, width, shared = draw.size(2, 8, by=8), draw.size(1, 6, by=8), draw.size(4, 40)
    return {
        "x": draw.values(batch, tokens, hidden),
        "w_router": draw.weight(experts, hidden),
        "w_gate_up": draw.weight(experts, 2 * width, hidden),
        "w_down": draw.weight(experts, hidden, width),
        "w_shared_gate": draw.weight(shared * (1 + ("w_shared_up" in draw.absent)), hidden),
        **draw.unless_absent(w_shared_up=draw.weight(shared, hidden)),
        "w_shared_down": draw.weight(hidden, shared),
        **choice,
    }


_ARGUMENTS: Mapping[str, Callable[[Draw], Arguments]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "linear": _linear,
    "rotary": _rotary,
    "rotary_embedding": _rotary_embedding,
    "swiglu": _swiglu,
    "route_topk": _route_topk,
    "attention": _attention,
    "eager_attention": _eager_attention,
    "paged_attention": _paged_attention,
    "cache_update": _cache_update,
    "grouped_mlp": _grouped_mlp,
    "moe": _moe,
}


def arguments(pattern: str, variant: Variant, dtype: torch.dtype, seed: int) -> Arguments:
    """Arguments of a variant by name, on the CPU."""
    return {**_ARGUMENTS, **drawn_quant.ARGUMENTS}[pattern](Draw(seed, dtype, variant))
