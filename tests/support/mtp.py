"""Multi-token prediction layers of a tiny GLM: transformers' own, and the entry of a layer as vLLM spells it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRMSNorm

from glmfuse import huggingface


def mtp_of(model: Any, layers: int = 1) -> MtpModel:
    """An MtpModel with random weights of its own behind a model, whose embedding and head it shares."""
    mtp = MtpModel(model, layers).to(model.dtype).eval()
    huggingface.randomize(mtp.layers, seed=2)
    return mtp


def arguments(mtp: Any, tokens: int, cached: int = 0, dynamic: bool = False) -> dict[str, Any]:
    """A call of an MtpModel for so many tokens, after so many others."""
    cache = MtpCache(config=mtp.config)
    if cached:
        mtp(**_call(mtp, cached, 0, cache))
    given = _call(mtp, tokens, cached, cache)
    if dynamic:
        for name in ("input_ids", "last_hidden_states", "position_ids"):
            torch._dynamo.mark_dynamic(given[name], 1)
    return given


def _call(mtp: Any, tokens: int, before: int, cache: MtpCache) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(0, mtp.config.vocab_size, (1, tokens)),
        "last_hidden_states": torch.randn(1, tokens, mtp.config.hidden_size).to(mtp.dtype),
        "attention_mask": None,
        "position_ids": torch.arange(before + 1, before + tokens + 1)[None],
        "mtp_cache": cache,
    }


def with_checkpoint(model: Any, folder: Path) -> Any:
    """A copy of the model that finds an MTP layer in this folder, as generate(use_mtp=True) looks for it."""
    number = model.config.num_hidden_layers
    weights = {
        _in_checkpoint(name, number): value.clone()
        for name, value in mtp_of(model).state_dict().items()
        if name.startswith("layers.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    copied = copy.deepcopy(model)
    copied.config.name_or_path = str(folder)
    copied._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{number}\..*"]
    return copied


def _in_checkpoint(name: str, number: int) -> str:
    name = name.replace("layers.0.", f"model.layers.{number}.")
    return name.replace("mtp_block.", "").replace("post_norm", "shared_head.norm")


class TokenMajorHead(nn.Module):
    """The entry of vLLM's MTP layer: rows of tokens, no embedding at position 0."""

    def __init__(self, hidden: int = 64, eps: float = 1e-5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.enorm = Glm4MoeRMSNorm(hidden, eps)
        self.hnorm = Glm4MoeRMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.to(dtype)
        huggingface.randomize(self, seed=3)

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        embeds = torch.where(positions.unsqueeze(-1) == 0, 0, embeds)
        return self.eh_proj(torch.cat([self.enorm(embeds), self.hnorm(hidden)], dim=-1))
