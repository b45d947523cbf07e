"""Where the weights come from that are quantised: drawn at random, or a checkpoint's, one tensor at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from glmfuse.errors import CheckpointError, Problem
from glmfuse.quantization.checkpoint.headers import Stored, stored
from glmfuse.quantization.inventory import SHARED_BY_MTP, Part, Weight, below
from glmfuse.quantization.schemes import FLOATS

Source = Callable[[Weight], Tensor]
"""Reads or draws a tensor. Asked again, it gives the same numbers."""

_UNREAD = ("rotary_emb.inv_freq",)
"""Older checkpoints hold what is computed anew."""


def drawn(seed: int, layers: int) -> Source:
    """Random weights, each by its own name, so that one can be drawn without those before it.

    As `glmfuse.huggingface.randomize` spreads them: norms about 1, biases about 0, matrices by their inputs.
    layers: of the model without MTP; what these share with it is drawn under its name there.
    """

    def draw(weight: Weight) -> Tensor:
        name = _original(weight.name, layers)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # it reads 32 bits alone
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            return 1 + 0.2 * values
        return 0.1 * values if "bias" in name else values * weight.shape[-1] ** -0.5

    return draw


def given(folder: Path, parts: Iterable[Part], layers: int) -> Source:
    """The weights of a floating-point checkpoint in a folder.

    CheckpointError: some are missing, of another shape or not floating point, or some have no place in the model; MTP
    layers that are not asked for may be there, and embedding and head of those that are may be missing.
    """
    found = stored(folder)
    wanted = {weight.name: weight for part in parts for weight in part.weights}
    problems = [*_unfit(wanted, found, layers), *_strange(wanted, found, layers)]
    if problems:
        raise CheckpointError(str(folder), problems)

    def read(weight: Weight) -> Tensor:
        name = weight.name if weight.name in found else _original(weight.name, layers)
        with safe_open(found[name].file, framework="pt") as file:
            return file.get_tensor(name)

    return read


def mtp_layers(folder: Path, layers: int) -> int:
    """How many MTP layers a checkpoint holds behind those of the model."""
    numbers = {name.split(".")[2] for name in stored(folder) if name.startswith("model.layers.")}
    return sum(int(number) >= layers for number in numbers)


def _original(name: str, layers: int) -> str:
    """The tensor that this one of an MTP layer is a copy of, or itself."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or int(parts[2]) < layers:
        return name
    return SHARED_BY_MTP.get(below(name, int(parts[2])), name)


def _unfit(wanted: dict[str, Weight], found: dict[str, Stored], layers: int) -> Iterator[Problem]:
    for name, weight in wanted.items():
        at = found.get(name) or found.get(_original(name, layers))
        if at is None or at.shape != weight.shape or at.dtype not in FLOATS:
            yield Problem(name, f"a floating-point tensor {list(weight.shape)}", str(at or "none"))


def _strange(wanted: dict[str, Weight], found: dict[str, Stored], layers: int) -> Iterator[Problem]:
    for name in found:
        parts = name.split(".")
        unasked = parts[:2] == ["model", "layers"] and int(parts[2]) >= layers
        if name not in wanted and not unasked and not name.endswith(_UNREAD):
            yield Problem(name, "no such tensor in the model of this config", str(found[name]))
