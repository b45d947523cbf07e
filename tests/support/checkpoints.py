"""Tiny quantised checkpoints, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from glmfuse.huggingface import TINY
from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint.headers import INDEX
from glmfuse.quantization.checkpoint.modelslim import FILE
from glmfuse.quantization.quantize import Job, form, quantize
from glmfuse.quantization.schemes import scheme

LAYERS = 2
CONFIG: dict[str, Any] = {**TINY, "num_hidden_layers": LAYERS, "n_routed_experts": 4}
"""A dense layer, one with experts, and an MTP layer behind them."""

WAYS: tuple[tuple[str, str | None, str | None, int | None], ...] = (
    ("w8a8", None, None, None),
    ("w8a8_dynamic", None, None, None),
    ("w8a8_dynamic", "compressed-tensors", None, None),
    ("w4a8_dynamic", None, "1.0.0", None),
    ("w4a8_dynamic", None, "1.0.0", 16),
    ("w4a8_dynamic", None, "0", None),
    ("w4a8_dynamic", None, "0", 16),
    ("w4a8_dynamic", "compressed-tensors", None, None),
    ("w4a8_dynamic", "compressed-tensors", None, 16),
    ("fp8_per_token", None, None, None),
)
"""Everything that can be written: scheme, format, version of W4A8 and group size."""


def write(
    folder: Path,
    name: str = "w8a8",
    format: str | None = None,
    version: str | None = None,
    group_size: int | None = None,
    **job: Any,
) -> Path:
    """A checkpoint of the tiny model, of random weights by default."""
    chosen = scheme(name)
    given = {"config": CONFIG, **job}
    quantize(Job(scheme=chosen, form=form(chosen, format, version, group_size), out=folder, **given))
    return folder


def written(folder: Path, *way: Any, **job: Any) -> checkpoint.Checkpoint:
    return checkpoint.open(write(folder, *way, **job))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None], layer: int = 0) -> None:
    """Change the tensors in a layer's file, and the index with them."""
    file = next(path for path in sorted(folder.glob("*.safetensors")) if _has_layer(path, layer))
    tensors = load_file(file)
    before = set(tensors)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    index = json.loads((folder / INDEX).read_text())
    for name in before - tensors.keys():
        del index["weight_map"][name]
    index["weight_map"] |= dict.fromkeys(tensors, file.name)
    (folder / INDEX).write_text(json.dumps(index))


def describe(folder: Path, change: Callable[[dict[str, Any]], None], file: str = FILE) -> None:
    """Change what a file in JSON beside the tensors says."""
    said = json.loads((folder / file).read_text())
    change(said)
    (folder / file).write_text(json.dumps(said))


def _has_layer(file: Path, layer: int) -> bool:
    return any(name.startswith(f"model.layers.{layer}.") for name in load_file(file))
