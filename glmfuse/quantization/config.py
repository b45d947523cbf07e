"""What config.json says of quantised weights, as transformers reads it."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config
from transformers.utils.quantization_config import CompressedTensorsConfig, QuantizationConfigMixin

from glmfuse.quantization.checkpoint import compressed_tensors

METHOD = "ascend"
_OTHER = "compressed-tensors"


@register_quantization_config(METHOD)
class AscendConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Weights that glmfuse's modules multiply; the checkpoint's own files say which layer is of which type.

    Read from `"quantization_config": {"quant_method": "ascend"}` in config.json. ModelSlim's checkpoints often have no
    such field: `from_pretrained(folder, quantization_config=AscendConfig())` says it in its place.
    """

    def __init__(self, quant_method: str = METHOD, **said: Any) -> None:
        self.quant_method = METHOD
        self.said = {"quant_method": quant_method, **said}

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        return dict(self.said)


class CompressedTensors(CompressedTensorsConfig):  # type: ignore[misc]
    """Chooses who reads a checkpoint of compressed-tensors: glmfuse what it has a type for, transformers the rest."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """By an exact comparison of every field that decides the arithmetic; see checkpoint/compressed_tensors.py."""
        chosen = AscendConfig if compressed_tensors.is_read(config_dict) else CompressedTensorsConfig
        return chosen.from_dict(config_dict, **kwargs)


AUTO_QUANTIZATION_CONFIG_MAPPING[_OTHER] = CompressedTensors
