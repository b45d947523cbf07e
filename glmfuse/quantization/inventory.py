"""Every tensor of a GLM-4.5 checkpoint, by its config: the names that published checkpoints have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glmfuse.errors import ConfigError

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the model before it is quantised.

    in_fp32: it is kept so, whatever the model's dtype, as routers compute. copy_of: the tensor that an MTP layer holds
    again.
    """

    name: str
    shape: tuple[int, ...]
    in_fp32: bool = False
    copy_of: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What is quantised at a time. layer: its number, or None for what lies outside the layers."""

    layer: int | None
    weights: tuple[Weight, ...]


def require_glm(config: Any) -> None:
    """ConfigError for a model whose tensors have other names."""
    if config.model_type != "glm4_moe":
        raise ConfigError(f"model_type {config.model_type!r} cannot be quantised; 'glm4_moe' can: GLM-4.5, 4.6 and 4.7")


def parts(config: Any, mtp_layers: int) -> list[Part]:
    """The checkpoint in the order in which a token passes through it, MTP layers last.

    config: transformers' of a glm4_moe.
    """
    vocabulary, layers = (config.vocab_size, config.hidden_size), config.num_hidden_layers
    ends = [Weight("model.norm.weight", (config.hidden_size,))]
    if not config.tie_word_embeddings:
        ends.append(Weight(_HEAD, vocabulary))
    return [
        Part(None, (Weight(_EMBEDDING, vocabulary),)),
        *(Part(number, tuple(_layer(config, number))) for number in range(layers)),
        Part(None, tuple(ends)),
        *(Part(number, tuple(_mtp(config, number))) for number in range(layers, layers + mtp_layers)),
    ]


def shapes(parts: list[Part]) -> dict[str, tuple[int, ...]]:
    """The shape of each module's weight, by the module's name: what a checkpoint is validated against."""
    return {
        weight.name.removesuffix(".weight"): weight.shape
        for part in parts
        for weight in part.weights
        if weight.name.endswith(".weight")
    }


def below(name: str, layer: int) -> str:
    """A tensor's name below its layer's."""
    return name.removeprefix(f"model.layers.{layer}.")


def _layer(config: Any, number: int) -> Iterator[Weight]:
    prefix, hidden = f"model.layers.{number}", config.hidden_size
    yield from _attention(config, f"{prefix}.self_attn")
    if number < config.first_k_dense_replace:
        yield from _mlp(f"{prefix}.mlp", hidden, config.intermediate_size)
    else:
        yield from _experts(config, f"{prefix}.mlp")
    yield Weight(f"{prefix}.input_layernorm.weight", (hidden,))
    yield Weight(f"{prefix}.post_attention_layernorm.weight", (hidden,))


def _attention(config: Any, prefix: str) -> Iterator[Weight]:
    hidden, head = config.hidden_size, getattr(config, "head_dim", None)
    head = head or hidden // config.num_attention_heads
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    for name, count in heads.items():
        yield Weight(f"{prefix}.{name}_proj.weight", (count * head, hidden))
        if config.attention_bias:
            yield Weight(f"{prefix}.{name}_proj.bias", (count * head,))
    yield Weight(f"{prefix}.o_proj.weight", (hidden, config.num_attention_heads * head))
    if config.use_qk_norm:
        yield Weight(f"{prefix}.q_norm.weight", (head,))
        yield Weight(f"{prefix}.k_norm.weight", (head,))


def _experts(config: Any, prefix: str) -> Iterator[Weight]:
    width = config.moe_intermediate_size
    yield Weight(f"{prefix}.gate.weight", (config.n_routed_experts, config.hidden_size), in_fp32=True)
    yield Weight(f"{prefix}.gate.e_score_correction_bias", (config.n_routed_experts,), in_fp32=True)
    for expert in range(config.n_routed_experts):
        yield from _mlp(f"{prefix}.experts.{expert}", config.hidden_size, width)
    yield from _mlp(f"{prefix}.shared_experts", config.hidden_size, width * config.n_shared_experts)


def _mlp(prefix: str, hidden: int, width: int) -> Iterator[Weight]:
    yield Weight(f"{prefix}.gate_proj.weight", (width, hidden))
    yield Weight(f"{prefix}.up_proj.weight", (width, hidden))
    yield Weight(f"{prefix}.down_proj.weight", (hidden, width))


def _mtp(config: Any, number: int) -> Iterator[Weight]:
    """A decoder layer, what joins a token's embedding to the hidden states before it, and what it shares."""
    prefix, hidden = f"model.layers.{number}", config.hidden_size
    vocabulary, head = (config.vocab_size, hidden), _EMBEDDING if config.tie_word_embeddings else _HEAD
    yield Weight(f"{prefix}.embed_tokens.weight", vocabulary, copy_of=_EMBEDDING)
    yield Weight(f"{prefix}.enorm.weight", (hidden,))
    yield Weight(f"{prefix}.hnorm.weight", (hidden,))
    yield Weight(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden))
    yield from _layer(config, number)
    yield Weight(f"{prefix}.shared_head.norm.weight", (hidden,))
    yield Weight(f"{prefix}.shared_head.head.weight", vocabulary, copy_of=head)
