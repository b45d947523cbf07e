"""ModelSlim's description of a checkpoint: the type of every tensor, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glmfuse.errors import CheckpointError, Problem
from glmfuse.quantization.checkpoint.described import Described, by_module
from glmfuse.quantization.checkpoint.headers import read_json
from glmfuse.quantization.schemes import FLOAT, FP8_PER_TOKEN, KINDS, MODELSLIM, Form, Kind

FILE = "quant_model_description.json"
_UNSAID = 256
"""Inputs to a group where an older description has groups and does not say; vllm-ascend's w4a8.py before efda0446db."""
_TYPES = {name: kind for name, kind in KINDS.items() if kind is not FP8_PER_TOKEN}


def read(folder: Path, names: Iterable[str]) -> Described:
    """The description beside the tensors of these names.

    CheckpointError: it names other tensors than there are, unknown types, or several types for one layer.
    """
    raw = read_json(folder / FILE)
    types = {name: said for name, said in raw.items() if "." in name}
    form = Form(MODELSLIM, str(raw.get("version", "0")), _group_size(folder, raw, types))
    problems = [*_named(types, set(names)), *_typed(types)]
    if problems:
        raise CheckpointError(str(folder / FILE), problems)
    kinds = {module: kind for module, kind in _kinds(types).items() if kind is not FLOAT}
    return Described(kinds, dict.fromkeys(kinds, form))


def describe(types: Mapping[str, str], form: Form, model_type: str) -> dict[str, Any]:
    """The description of tensors of these types. model_type: the type that names the whole, as ModelSlim has it."""
    return {"model_quant_type": model_type, "version": form.version, "group_size": form.group_size, **types}


def _group_size(folder: Path, raw: Mapping[str, Any], types: Iterable[str]) -> int:
    grouped = any(name.endswith(".weight_scale_second") for name in types)
    size = raw.get("group_size", _UNSAID if grouped else 0)
    if not isinstance(size, int) or size < 0:
        raise CheckpointError(str(folder / FILE), [Problem("group_size", "a number of inputs, or 0", repr(size))])
    return size


def _named(types: Mapping[str, str], names: set[str]) -> Iterator[Problem]:
    """Tensors that are described and not there, or there and not described; a layer's together."""
    for module, tensors in by_module(sorted(types.keys() - names)).items():
        yield Problem(module, f"{', '.join(tensors)}, as described", "no such tensor")
    for module, tensors in by_module(sorted(names - types.keys())).items():
        yield Problem(module, "a description of each tensor", f"{', '.join(tensors)} without one")


def _typed(types: Mapping[str, str]) -> Iterator[Problem]:
    """Types that nobody knows, and layers of several. A bias stays as it was, so it may be FLOAT beside the others."""
    for name, said in types.items():
        if said not in _TYPES:
            yield Problem(name, f"a type of {', '.join(_TYPES)}", repr(said))
    for module, tensors in by_module(types).items():
        several = {str(types[f"{module}.{name}"]) for name in tensors if name != "bias"}
        if len(several) > 1:
            yield Problem(module, "one type for all its tensors", ", ".join(sorted(several)))


def _kinds(types: Mapping[str, str]) -> dict[str, Kind]:
    return {name.rpartition(".")[0]: _TYPES[said] for name, said in types.items() if not name.endswith(".bias")}
