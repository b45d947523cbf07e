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
    """Writes tensors into files as they come, and keeps of those that are written the names alone.

    limit: bytes of tensors that are held at most before a file is written. config.json comes last: a folder without
    one was not finished. ConfigError: the folder holds something already.
    """

    def __init__(self, folder: Path, limit: int = 1 << 30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder, or empty it")
        self._folder, self._limit = folder, limit
        self._held: dict[str, Tensor] = {}
        self._held_bytes = self._bytes = self._files = 0
        self._placed: dict[str, int] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors of the file at hand, by full names."""
        self._held |= {name: value.contiguous() for name, value in tensors.items()}
        self._held_bytes += sum(value.nbytes for value in tensors.values())
        if self._held_bytes >= self._limit:
            self.close()

    def close(self) -> None:
        """Write the file at hand; what comes next goes to another."""
        if not self._held:
            return
        self._files += 1
        save_file(self._held, self._folder / _unnumbered(self._files), {"format": "pt"})
        self._placed |= dict.fromkeys(self._held, self._files)
        self._bytes += self._held_bytes
        self._held, self._held_bytes = {}, 0

    def copy_from(self, folder: Path) -> None:
        """What a model needs beside its weights, such as its tokenizer, as another checkpoint holds it."""
        for file in (path for pattern in _BESIDE for path in folder.glob(pattern)):
            shutil.copyfile(file, self._folder / file.name)

    def finish(self, config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> int:
        """The index, what else lies beside by file names, and the config; returns the bytes of all tensors."""
        self.close()
        names = {number: f"model-{number:05}-of-{self._files:05}.safetensors" for number in range(1, self._files + 1)}
        for number, name in names.items():
            (self._folder / _unnumbered(number)).rename(self._folder / name)
        placed = {tensor: names[number] for tensor, number in self._placed.items()}
        index = {"metadata": {"total_size": self._bytes}, "weight_map": placed}
        for name, value in {**beside, INDEX: index, "config.json": config}.items():
            (self._folder / name).write_text(json.dumps(value, indent=1) + "\n")
        return self._bytes


def _unnumbered(number: int) -> str:
    """A file's name until it is known how many there are."""
    return f"model-{number:05}.safetensors"
