"""Tiny members of the GLM family, and of what it shares with others, on the newest transformers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

from glmfuse import huggingface
from glmfuse.huggingface import TINY
from tests.support.glm import BATCH, CACHE, PROMPT, prefill

LAYERS = 2
"""One dense, and one with experts where a member has them."""

_MOE = {**TINY, "num_hidden_layers": LAYERS}
_LATENT = {
    **{name: value for name, value in _MOE.items() if name not in ("head_dim", "use_qk_norm")},
    "num_key_value_heads": TINY["num_attention_heads"],
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "attention_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
_FOR_EXPERTS = ("moe_", "n_", "num_experts", "first_k", "routed_", "norm_topk", "use_qk")
_DENSE = {name: value for name, value in _MOE.items() if not name.startswith(_FOR_EXPERTS)}
_MROPE = {**TINY["rope_parameters"], "mrope_section": [1, 1, 2]}
_INDEXER = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}

MEMBERS: dict[str, dict[str, Any]] = {
    "glm4_moe": _MOE,
    "glm4_moe (Air)": {**_MOE, "use_qk_norm": False, "routed_scaling_factor": 1.0},
    "glm4v_moe_text": {**_MOE, "model_type": "glm4v_moe_text", "rope_parameters": _MROPE},
    "glm4_moe_lite": {**_LATENT, "model_type": "glm4_moe_lite"},
    "glm_moe_dsa": {**_LATENT, "model_type": "glm_moe_dsa", **_INDEXER},
    "deepseek_v3": {**_LATENT, "model_type": "deepseek_v3", "qk_nope_head_dim": 16, "n_group": 4, "topk_group": 2},
    "glm4": {**_DENSE, "model_type": "glm4"},
    "glm": {**_DENSE, "model_type": "glm"},
}
"""GLM-4.5, 4.6 and 4.7; Air; the text part of 4.5V; 4.7-Flash; GLM-5; DeepSeek-V3; the dense GLMs."""


@cache
def member(name: str) -> Any:
    """The model in bf16 with random weights."""
    config = huggingface.make_config(MEMBERS[name])
    if "n_routed_experts" in MEMBERS[name]:
        config._experts_implementation = "grouped_mm"
    if name != "glm4v_moe_text":
        return huggingface.build(config, torch.bfloat16)
    model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16).eval()  # no head of its own
    huggingface.randomize(model, seed=1)
    return model


def places(name: str, model: Any) -> dict[str, Any]:
    """A prompt; that of the vision model has the place of each token in time, height and width."""
    arguments = prefill(model)
    if name == "glm4v_moe_text":
        arguments["position_ids"] = torch.randint(0, PROMPT, (3, BATCH, PROMPT))
    return arguments


def decode(name: str, model: Any) -> dict[str, Any]:
    """One more token over a StaticCache, which the prompt has shaped: latent attention keeps other sizes."""
    kept = transformers.StaticCache(config=model.config, max_cache_len=CACHE)
    model(**places(name, model), **huggingface.call_with(model, kept))
    return {"input_ids": huggingface.random_tokens(model, BATCH, 1), **huggingface.call_with(model, kept)}


PHASES = {"prefill": places, "decode": decode}
