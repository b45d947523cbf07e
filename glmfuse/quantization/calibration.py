"""Static scales of inputs: random tokens through the floating-point model, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmfuse.quantization.inventory import Part, Weight, below
from glmfuse.quantization.rounding import Inputs
from glmfuse.quantization.schemes import W8A8, Scheme
from glmfuse.quantization.source import Source

_BATCH, _TOKENS = 2, 64


@dataclass
class _Seen:
    """The least and the largest number that a layer was given."""

    low: float = 0.0
    high: float = 0.0

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.low, self.high = (value.item() for value in torch.aminmax(given[0].to(torch.float32)))


class Calibration:
    """Tokens on their way through the model; each layer that they pass says what its projections were given.

    config: transformers' of a glm4_moe. dtype: the model's, in which it computes. Projections of one input see the
    same numbers, so they have one scale and one offset.
    """

    def __init__(self, config: Any, scheme: Scheme, source: Source, dtype: torch.dtype, seed: int) -> None:
        from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding

        config._attn_implementation, config._experts_implementation = "sdpa", "eager"
        self._config, self._scheme, self._source, self._dtype = config, scheme, source, dtype
        generator = torch.Generator().manual_seed(seed)
        self._tokens = torch.randint(0, config.vocab_size, (_BATCH, _TOKENS), generator=generator)
        self._hidden = self._embedded()
        self._places = Glm4MoeRotaryEmbedding(config)(self._hidden, torch.arange(_TOKENS).unsqueeze(0))

    @torch.no_grad()
    def through(self, part: Part) -> dict[str, Inputs]:
        """Pass a layer; the static inputs of its W8A8 projections, by their full names."""
        if part.layer is None:
            return {}
        if part.layer == self._config.num_hidden_layers:
            self._hidden = self._normed("model.norm.weight", self._hidden)
        if part.layer >= self._config.num_hidden_layers:
            self._hidden = self._joined(part.layer)
        layer = self._built(part)
        seen = dict(self._watched(layer, part.layer))
        self._hidden = layer(self._hidden, position_embeddings=self._places)
        return {name: Inputs.between(range_.low, range_.high, self._dtype) for name, range_ in seen.items()}

    def _watched(self, layer: nn.Module, number: int) -> Iterator[tuple[str, _Seen]]:
        for name, module in layer.named_modules():
            full = f"model.layers.{number}.{name}"
            if isinstance(module, nn.Linear) and self._scheme.kind_of(full) is W8A8:
                seen = _Seen()
                module.register_forward_pre_hook(seen)
                yield full, seen

    def _built(self, part: Part) -> nn.Module:
        """The decoder layer with its weights; those of experts go to their places in transformers' stacks."""
        from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer

        assert part.layer is not None
        with torch.device("meta"):
            layer = Glm4MoeDecoderLayer(self._config, part.layer).to(self._dtype)
        layer = layer.to_empty(device="cpu").eval()
        held = dict(layer.named_parameters()) | dict(layer.named_buffers())
        for weight in part.weights:
            place = _place(held, below(weight.name, part.layer))
            if place is not None:
                if weight.in_fp32:
                    place.data = place.data.float()
                place.copy_(self._source(weight))
        return layer

    def _joined(self, number: int) -> Tensor:
        """What an MTP layer is given: the next token's embedding beside the hidden states, both normed."""
        ahead = 1 + number - self._config.num_hidden_layers
        embedded = torch.roll(self._embedded(), -ahead, dims=1)
        prefix, hidden = f"model.layers.{number}", self._config.hidden_size
        normed = (
            self._normed(f"{prefix}.enorm.weight", embedded),
            self._normed(f"{prefix}.hnorm.weight", self._hidden),
        )
        weight = self._source(Weight(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden)))
        return F.linear(torch.cat(normed, dim=-1), weight.to(self._dtype))

    def _embedded(self) -> Tensor:
        weight = Weight("model.embed_tokens.weight", (self._config.vocab_size, self._config.hidden_size))
        return F.embedding(self._tokens, self._source(weight).to(self._dtype))

    def _normed(self, name: str, x: Tensor) -> Tensor:
        weight = self._source(Weight(name, (self._config.hidden_size,))).to(self._dtype)
        return F.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)


def _place(held: dict[str, Tensor], name: str) -> Tensor | None:
    """The memory of a tensor of the checkpoint; None where the decoder layer has none, as for what MTP adds."""
    if ".experts." not in name:
        return held.get(name)
    owner, _, rest = name.partition(".experts.")
    expert, projection, _ = rest.split(".")
    if projection == "down_proj":
        return held[f"{owner}.experts.down_proj"][int(expert)]
    gate, up = held[f"{owner}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up
