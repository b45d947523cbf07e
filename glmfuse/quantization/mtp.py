"""Multi-token prediction layers of a quantised checkpoint, for transformers' MtpModel and generate(use_mtp=True).

A checkpoint has them behind the model's own: `model.layers.<num_hidden_layers>.*`. Of each, eh_proj, enorm, hnorm and
shared_head.norm are the entry and the end, and all else is the decoder layer inside; embed_tokens and shared_head.head
are the model's own, which the layer shares. Source: glm4_moe_mtp.py of vLLM; MtpModel of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from transformers import modeling_layers

from glmfuse.errors import Problem
from glmfuse.quantization.checkpoint import Checkpoint
from glmfuse.quantization.conversions import with_scales
from glmfuse.quantization.npu.move import to_npu
from glmfuse.quantization.skeleton import Names, after_loading, replace_layers

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_PLACED = re.compile(r"layers\.(\d+)\.(.*)")
_original = modeling_layers.MtpModel


class MtpModel(_original):  # type: ignore[misc, valid-type]
    """transformers' MtpModel with the layers that the model's checkpoint describes.

    It has the name of the class that it stands for, since transformers finds conversions of weights by it.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        *_original._keys_to_ignore_on_load_unexpected,
        r"_proj\.(weight_scale|weight_offset|bias)$",
    ]

    def __init__(self, main_model: Any, num_mtp_layers: int) -> None:
        super().__init__(main_model, num_mtp_layers)
        replace_layers(self, main_model.hf_quantizer.checkpoint, checkpoint_names(main_model.config))

    def get_weight_conversions(self, main_model: Any) -> list[Any]:
        """Those of the model and of this class, with experts' scales for kinds that the model itself has not."""
        return with_scales(super().get_weight_conversions(main_model))

    @classmethod
    def is_custom_code(cls) -> bool:
        """The names of its weights are those that transformers knows."""
        return False

    @classmethod
    def from_pretrained(cls, main_model: Any, device_map: Any = None, **kwargs: Any) -> Any:
        """The layers with their weights, ready to be called where the model is."""
        made = _load(cls, main_model, device_map={"": torch.device("cpu")}, **kwargs)
        after_loading(made)
        return to_npu(made, main_model.device) if main_model.device.type == "npu" else made.to(main_model.device)


_load = _original.from_pretrained.__func__


def _from_pretrained(cls: type[Any], /, main_model: Any, device_map: Any = None, **kwargs: Any) -> Any:
    """generate makes its MtpModel by this name and knows no quantizer; here it gets that of a quantised model."""
    from glmfuse.quantization.quantizer import AscendQuantizer

    if isinstance(getattr(main_model, "hf_quantizer", None), AscendQuantizer):
        return MtpModel.from_pretrained(main_model, device_map, **kwargs)
    return _load(cls, main_model, device_map=device_map, **kwargs)


def serve_generate() -> None:
    """Let generate(use_mtp=True) draft with quantised layers where the model is quantised."""
    _original.from_pretrained = classmethod(_from_pretrained)


def checkpoint_names(config: Any) -> Names:
    """Names of an MtpModel's modules in a checkpoint of this config; empty for what it shares with the model."""
    before = config.get_text_config().num_hidden_layers

    def name_of(name: str) -> str:
        placed = _PLACED.fullmatch(name)
        if placed is None:
            return ""
        inner = placed[2].removeprefix("mtp_block.")
        inner = "shared_head.norm" if inner == "post_norm" else inner
        return f"model.layers.{before + int(placed[1])}.{inner}"

    return name_of


def skeletons(checkpoint: Checkpoint, model: Any) -> Iterator[tuple[Any, Names]]:
    """The MtpModel that the checkpoint has layers for, without weights."""
    text = model.config.get_text_config()
    if _layers_in(checkpoint, text):
        yield _original(model, text.num_mtp_layers), checkpoint_names(model.config)


def unknown_layers(checkpoint: Checkpoint, config: Any) -> Iterator[Problem]:
    """Layers behind the model's own that the config does not speak of."""
    text = config.get_text_config()
    last = text.num_hidden_layers + (getattr(text, "num_mtp_layers", None) or 0)
    for number in _layers_in(checkpoint, text):
        if number >= last:
            yield Problem(f"model.layers.{number}", f"layers 0 to {last - 1}, as the config says", "another one")


def names_of_layers(checkpoint: Checkpoint, config: Any) -> list[str]:
    """Patterns of the tensors that only an MtpModel loads."""
    return [rf"model\.layers\.{number}\..*" for number in _layers_in(checkpoint, config.get_text_config())]


def _layers_in(checkpoint: Checkpoint, text: Any) -> list[int]:
    numbers = {int(found[1]) for name in checkpoint.modules if (found := _LAYER.match(name))}
    return sorted(number for number in numbers if number >= text.num_hidden_layers)
