"""Hugging Face models for the command line and the tests: built from a config, with random or no weights."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from glmfuse.ascend.aside import set_aside
from glmfuse.errors import ConfigError, UnavailableError

TINY: dict[str, Any] = {
    "model_type": "glm4_moe",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "attention_bias": True,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    "eos_token_id": None,
    "pad_token_id": None,
}
"""GLM-4.5 with every width cut down: qk-norm, attention bias, one dense layer, then experts."""


def require_transformers() -> Any:
    """The transformers package, or an error that says how to install it."""
    set_aside()  # transformers imports torch_npu wherever it is installed
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError("package", "transformers", "install it with: pip install 'glmfuse[hf]'") from error
    return transformers


def read_config(path: str | Path) -> dict[str, Any]:
    """A Hugging Face config.json as a dictionary; ConfigError says what is wrong with the file."""
    try:
        raw = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ConfigError(f"{path} is not a Hugging Face config: it has no 'model_type', such as 'glm4_moe'")
    return raw


def make_config(raw: dict[str, Any], **overrides: Any) -> Any:
    """A transformers config from a dictionary."""
    transformers = require_transformers()
    values = {**raw, **overrides}
    model_type = values.pop("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"transformers {transformers.__version__} has no model_type {model_type!r}; a newer one may have it"
        )
    return transformers.CONFIG_MAPPING[model_type](**values)


def build(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A causal language model in eval mode with random weights of this dtype."""
    transformers = require_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    randomize(model, seed + 1)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight anew.

    Biases, norms and the router's correction bias are random too, so that a fusion that drops one shows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name:
                tensor.copy_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
            elif "bias" in name:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.dim() >= 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)


@contextlib.contextmanager
def weightless() -> Iterator[FakeTensorMode]:
    """Inside, models are built at full size without memory for their weights."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode


def build_weightless(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model of a config on fake tensors; call it inside `weightless()`."""
    transformers = require_transformers()
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            return transformers.AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


def static_cache(model: Any, batch: int, length: int) -> Any:
    """An empty StaticCache for the model, allocated, so that a trace sees it as an input."""
    config = model.config.get_text_config()
    cache = require_transformers().StaticCache(config=model.config, max_cache_len=length)
    heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache.early_initialization(batch, heads, head_dim, model.dtype, model.device)
    return cache


def call_with(model: Any, cache: Any) -> dict[str, Any]:
    """The keyword argument that hands a model its cache: `cache` from transformers 5.24 on."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def random_tokens(model: Any, batch: int, tokens: int) -> torch.Tensor:
    """Token ids [batch, tokens] of the model's vocabulary."""
    return torch.randint(0, model.config.get_text_config().vocab_size, (batch, tokens), device=model.device)
