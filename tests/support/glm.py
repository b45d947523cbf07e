"""Tiny GLMs and the ways to call them that the tests go through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers

from glmfuse import huggingface

BATCH, PROMPT, CACHE = 2, 7, 32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _model(dtype: torch.dtype, overrides: tuple[tuple[str, Any], ...]) -> Any:
    values = dict(overrides)
    experts = values.pop("experts", "grouped_mm")
    rotary = values.pop("rotary", None)
    if rotary is not None:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": rotary}
    config = huggingface.make_config(huggingface.TINY, **values)
    config._experts_implementation = experts
    return huggingface.build(config, dtype)


def tiny(dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A tiny Glm4MoeForCausalLM, one for each set of overrides; `rotary` is the factor, `experts` the way."""
    return _model(dtype, tuple(sorted(overrides.items())))


@dataclass(frozen=True)
class Phase:
    """A way to call the model. `dynamic` names what may be marked dynamic, or is why nothing may."""

    name: str
    arguments: Callable[[Any, bool], dict[str, Any]]
    dynamic: str

    @property
    def may_be_dynamic(self) -> bool:
        """Whether transformers lets any size of this call vary."""
        return not self.dynamic.startswith("no:")


def prefill(model: Any, dynamic: bool = False) -> dict[str, Any]:
    ids = huggingface.random_tokens(model, BATCH, PROMPT)
    if dynamic:
        torch._dynamo.mark_dynamic(ids, 0)
        torch._dynamo.mark_dynamic(ids, 1)
    return {"input_ids": ids}


def prefill_static(model: Any, dynamic: bool = False) -> dict[str, Any]:
    ids = huggingface.random_tokens(model, BATCH, PROMPT)
    if dynamic:
        torch._dynamo.mark_dynamic(ids, 1)
    return {"input_ids": ids, **huggingface.call_with(model, huggingface.static_cache(model, BATCH, CACHE))}


def decode_static(model: Any, dynamic: bool = False) -> dict[str, Any]:
    cache = huggingface.static_cache(model, BATCH, CACHE)
    model(huggingface.random_tokens(model, BATCH, PROMPT), **huggingface.call_with(model, cache))
    return {"input_ids": huggingface.random_tokens(model, BATCH, 1), **huggingface.call_with(model, cache)}


def decode_dynamic(model: Any, dynamic: bool = False) -> dict[str, Any]:
    cache = transformers.DynamicCache(config=model.config)
    model(huggingface.random_tokens(model, BATCH, PROMPT), **huggingface.call_with(model, cache))
    if dynamic:
        for layer in cache.layers:
            for tensor in (layer.keys, layer.values):
                torch._dynamo.mark_dynamic(tensor, 2)
    return {"input_ids": huggingface.random_tokens(model, BATCH, 1), **huggingface.call_with(model, cache)}


PHASES = (
    Phase("prefill", prefill, "batch and tokens"),
    Phase("prefill_static", prefill_static, "tokens; the batch is fixed by the allocated cache"),
    Phase("decode_static", decode_static, "no: one token, and index_copy_ fixes the batch to the cache's"),
    Phase("decode_dynamic", decode_dynamic, "cached tokens"),
)


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call once more, with a cache of its own."""
    return {name: copy.deepcopy(value) for name, value in arguments.items()}
