"""A quantised checkpoint into a folder, one file for each part of the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from glmfuse.errors import ConfigError
from glmfuse.quantization.checkpoint.headers import INDEX

_BESIDE = ("tokenizer*", "generation_config.json", "special_tokens_map.json", "*.jinja", "vocab.*", "merges.txt")


class Writer:
    """Writes files in order and keeps nothing of them but the names.

    config.json comes last: a folder without one was not finished. ConfigError: the folder holds something already.
    """

    def __init__(self, folder: Path, files: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder, or empty it")
        self._folder, self._files = folder, files
        self._placed: dict[str, str] = {}
        self._bytes = 0

    def add(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """One file, number 1 the first."""
        name = f"model-{number:05}-of-{self._files:05}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, self._folder / name, {"format": "pt"})
        self._placed |= dict.fromkeys(tensors, name)
        self._bytes += sum(value.nbytes for value in tensors.values())

    def copy_from(self, folder: Path) -> None:
        """What a model needs beside its weights, such as its tokenizer, as another checkpoint holds it."""
        for file in (path for pattern in _BESIDE for path in folder.glob(pattern)):
            shutil.copyfile(file, self._folder / file.name)

    def finish(self, config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> int:
        """The index, what else lies beside by file names, and the config; returns the bytes of all tensors."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._placed}
        for name, value in {**beside, INDEX: index, "config.json": config}.items():
            (self._folder / name).write_text(json.dumps(value, indent=1) + "\n")
        return self._bytes
