"""What safetensors files say that they hold, read without their data."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmfuse.errors import CheckpointError, Problem

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LENGTH = 8
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint, by name, in the order of names.

    CheckpointError: there is none, a file is cut off, or the index names other tensors than the files hold.
    """
    placed = _placed(folder)
    names = sorted(set(placed.values())) if placed is not None else [SINGLE]
    found = {tensor: value for name in names for tensor, value in _tensors(folder / name)}
    if placed is not None and (problems := list(_misplaced(placed, found))):
        raise CheckpointError(str(folder / INDEX), problems)
    return dict(sorted(found.items()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; CheckpointError says what is wrong with the file."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise _broken(path, "a file", error.strerror or "none") from error
    except ValueError as error:
        raise _broken(path, "JSON", str(error)) from error
    if not isinstance(value, dict):
        raise _broken(path, "a JSON object", type(value).__name__)
    return value


def _placed(folder: Path) -> dict[str, str] | None:
    """The file of each tensor, where there is an index."""
    if not (folder / INDEX).exists():
        return None
    placed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict):
        raise _broken(folder / INDEX, "a 'weight_map'", type(placed).__name__)
    return placed


def _misplaced(placed: dict[str, str], found: dict[str, Stored]) -> Iterator[Problem]:
    for name in sorted(placed.keys() | found.keys()):
        said, is_in = placed.get(name), found[name].file.name if name in found else None
        if said != is_in:
            yield Problem(name, f"in {said}" if said else "a place in the index", f"in {is_in}" if is_in else "nowhere")


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Format: https://huggingface.co/docs/safetensors: a length in 8 bytes, so much JSON, and then the data."""
    try:
        with path.open("rb") as file:
            prefix, size = file.read(_LENGTH), path.stat().st_size
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == _LENGTH else size
            if _LENGTH + length > size:
                raise _broken(
                    path, f"a header of {length} bytes", f"a file of {size}: it is cut off, or no safetensors"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise _broken(path, "a file", error.strerror or "none") from error
    except ValueError as error:
        raise _broken(path, "a safetensors header in JSON", str(error)) from error
    if not isinstance(header, dict):
        raise _broken(path, "a safetensors header in JSON", type(header).__name__)
    header.pop("__metadata__", None)
    whole = _LENGTH + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if whole != size:
        raise _broken(path, f"{whole} bytes, as its header says", f"{size}: copy or download it again")
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(str(path), [Problem(name, f"a dtype of {', '.join(_DTYPES)}", entry["dtype"])])
        yield name, Stored(path, tuple(entry["shape"]), _DTYPES[entry["dtype"]])


def _broken(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(str(path.parent), [Problem(path.name, expected, found)])
