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
from glmfuse.quantization.inventory import Part, Weight
from glmfuse.quantization.schemes import FLOATS

Source = Callable[[Weight], Tensor]
"""Reads or draws a tensor. Asked again, it gives the same numbers."""

_UNREAD = ("rotary_emb.inv_freq",)
"""Older checkpoints hold what is computed anew."""


def drawn(seed: int) -> Source:
    """Random weights, each by its own name, so that one can be drawn without those before it.

    As `glmfuse.huggingface.randomize` spreads them: norms about 1, biases about 0, matrices by their inputs.
    """

    def draw(weight: Weight) -> Tensor:
        name = weight.copy_of or weight.name
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # it reads 32 bits alone
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            return 1 + 0.2 * values
        return 0.1 * values if "bias" in name else values * weight.shape[-1] ** -0.5

    return draw


def given(folder: Path, parts: Iterable[Part], layers: int) -> Source:
    """The weights of a floating-point checkpoint in a folder; layers: of the model without MTP.

    CheckpointError: some are missing, of another shape or not floating point, or some have no place in the model; MTP
    layers that are not asked for may be there, and embedding and head of those that are may be missing.
    """
    found = stored(folder)
    wanted = [weight for part in parts for weight in part.weights]
    problems = [*_unfit(wanted, found), *_strange(wanted, found, layers)]
    if problems:
        raise CheckpointError(str(folder), problems)

    def read(weight: Weight) -> Tensor:
        name = _name_in(found, weight)
        with safe_open(found[name].file, framework="pt") as file:
            return file.get_tensor(name)

    return read


def mtp_layers(folder: Path, layers: int) -> int:
    """How many MTP layers a checkpoint holds behind those of the model."""
    return len({number for name in stored(folder) if (number := _layer(name)) is not None and number >= layers})


def _name_in(found: dict[str, Stored], weight: Weight) -> str:
    """The tensor's own name, or of which it is a copy where it was left out."""
    return weight.copy_of if weight.copy_of and weight.name not in found else weight.name


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and parts[2].isdigit() else None


def _unfit(wanted: Iterable[Weight], found: dict[str, Stored]) -> Iterator[Problem]:
    for weight in wanted:
        at = found.get(_name_in(found, weight))
        if at is None or at.shape != weight.shape or at.dtype not in FLOATS:
            yield Problem(weight.name, f"a floating-point tensor {list(weight.shape)}", str(at or "none"))


def _strange(wanted: Iterable[Weight], found: dict[str, Stored], layers: int) -> Iterator[Problem]:
    names = {weight.name for weight in wanted}
    for name, at in found.items():
        number = _layer(name)
        unasked = number is not None and number >= layers
        if name not in names and not unasked and not name.endswith(_UNREAD):
            yield Problem(name, "no such tensor in the model of this config", str(at))
