"""Tiny quantised GLMs: written once for each scheme as `glmfuse quantize` writes them, and loaded as anyone would."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import glmfuse.quantization  # noqa: F401
from glmfuse import huggingface
from glmfuse.quantization.quantize import Job, form, quantize
from glmfuse.quantization.schemes import scheme

CONFIG = {**huggingface.TINY, "dtype": "bfloat16", "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
LAYERS, DENSE = 3, 1


@dataclass(frozen=True)
class Case:
    """A way to write a scheme. given: what `quantize` is told; config: what differs from CONFIG."""

    scheme: str
    format: str | None = None
    version: str | None = None
    group_size: int | None = None
    config: tuple[tuple[str, Any], ...] = field(default=())


CASES = {
    "w8a8": Case("w8a8"),
    "w8a8_dynamic": Case("w8a8_dynamic"),
    "w8a8_dynamic, compressed-tensors": Case("w8a8_dynamic", "compressed-tensors"),
    "fp8_per_token": Case("fp8_per_token"),
    "w4a8_dynamic 1.0.0": Case("w4a8_dynamic"),
    "w4a8_dynamic 1.0.0 in groups": Case("w4a8_dynamic", group_size=16),
    "w4a8_dynamic 0 in groups": Case("w4a8_dynamic", version="0", group_size=16),
    "w4a8_dynamic 0": Case("w4a8_dynamic", version="0"),
    "w4a8_dynamic, compressed-tensors": Case("w4a8_dynamic", "compressed-tensors", group_size=16),
}
ONE_EACH = ("w8a8", "w8a8_dynamic", "fp8_per_token", "w4a8_dynamic 1.0.0 in groups")
"""A case of each scheme."""


@cache
def _made() -> Path:
    return Path(tempfile.mkdtemp(prefix="glmfuse-quantised-"))


@cache
def float_folder() -> Path:
    """The float model with MTP layer, whose weights the schemes are given; no bias is zero and no norm is one."""
    folder = _made() / "float"
    config = huggingface.make_config({key: value for key, value in CONFIG.items() if key != "dtype"})
    huggingface.build(config, torch.bfloat16).save_pretrained(folder)
    return folder


@cache
def folder_of(case: str) -> Path:
    """The checkpoint of a case, with random weights and an MTP layer; not to be written to."""
    said = CASES[case]
    chosen = scheme(said.scheme)
    folder = _made() / case.replace(" ", "_")
    how = form(chosen, said.format, said.version, said.group_size)
    quantize(Job({**CONFIG, **dict(said.config)}, chosen, how, folder))
    return folder


def copied(case: str, folder: Path) -> Path:
    """A copy of a checkpoint, to spoil."""
    return Path(shutil.copytree(folder_of(case), folder / "copy"))


def load(folder: Path, **kwargs: Any) -> Any:
    """As anyone loads a model."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs)


@cache
def quantised(case: str) -> Any:
    """The loaded model of a case; not to be changed."""
    return load(folder_of(case)).eval()
