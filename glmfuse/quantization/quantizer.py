"""transformers' quantizer: `from_pretrained` of a quantised checkpoint, without a change to the model's code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from glmfuse.errors import CheckpointError, ConfigError, Problem
from glmfuse.quantization import checkpoint, mtp
from glmfuse.quantization.checkpoint import Checkpoint
from glmfuse.quantization.config import METHOD
from glmfuse.quantization.conversions import with_scales
from glmfuse.quantization.schemes import W8A8
from glmfuse.quantization.skeleton import after_loading, replace_layers, unlike_tensors, weights_of


@register_quantizer(METHOD)
class AscendQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds the layers that a checkpoint describes, once all of it has been held against the model.

    Raises:
        CheckpointError: files, description and model disagree, with every layer, what is expected and what was found.
        ConfigError: a dtype that the layers cannot give, or a model without files.
    """

    checkpoint: Checkpoint

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **{**kwargs, "pre_quantized": True})

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Products of int8 and fp8 are rounded to 16 bits, by the operators and so by the modules."""
        if dtype not in (torch.bfloat16, torch.float16):
            raise ConfigError(f"quantised layers give bf16 or fp16, not {dtype}: pass dtype=torch.bfloat16")
        return dtype

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> Any:
        if not checkpoint_files:
            raise ConfigError("a quantised model is loaded from its checkpoint: from_pretrained(folder)")
        self.checkpoint = checkpoint.open(Path(checkpoint_files[0]).parent)
        self._validate(model)
        replace_layers(model, self.checkpoint)
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            *mtp.names_of_layers(self.checkpoint, model.config),
            *_not_read(self.checkpoint),
        }
        return model

    def _validate(self, model: Any) -> None:
        """Everything that is wrong, for the model and its MTP layers, in one error."""
        skeletons = [(model, lambda name: name), *mtp.skeletons(self.checkpoint, model)]
        expected: dict[str, tuple[int, ...]] = {}
        problems: list[Problem] = list(mtp.unknown_layers(self.checkpoint, model.config))
        for skeleton, name_of in skeletons:
            expected |= weights_of(skeleton, name_of)
            problems += unlike_tensors(skeleton, self.checkpoint, name_of)
        try:
            self.checkpoint.validate(expected)
        except CheckpointError as error:
            problems += error.problems
        if problems:
            raise CheckpointError(str(self.checkpoint.folder), problems)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Experts' scales are merged as their weights are."""
        return with_scales(weight_conversions)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        after_loading(model)
        return model

    def is_serializable(self) -> bool:
        """A checkpoint is written by `glmfuse quantize`; layers hold what they made of theirs."""
        return False

    @property
    def is_trainable(self) -> bool:
        """No gradient goes through rounded rows."""
        return False

    @property
    def is_compileable(self) -> bool:
        """It is what they are for."""
        return True


def _not_read(checkpoint: Checkpoint) -> Iterator[str]:
    """Patterns of what ModelSlim may keep beside static scales: deq_scale and quant_bias have been made of it."""
    for module, held in checkpoint.modules.items():
        if checkpoint.kind_of(module) is W8A8:
            tensors = W8A8.holds(checkpoint.linear_of(module), checkpoint.form_of(module))
            yield from (re.escape(f"{module}.{name}") for name in held if tensors[name].optional)
