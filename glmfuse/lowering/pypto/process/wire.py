"""Messages on a pipe: pickled, with tensors as their bytes, since torch cannot pickle every dtype."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class _Bytes:
    dtype: torch.dtype
    shape: tuple[int, ...]
    data: bytes


def send(connection: Connection, message: Any) -> None:
    """Send a message of dataclasses, tuples, mappings and tensors."""
    connection.send_bytes(pickle.dumps(_walk(message, torch.Tensor, _to_bytes), protocol=5))


def receive(connection: Connection) -> Any:
    """The next message; EOFError when the other side is gone."""
    return _walk(pickle.loads(connection.recv_bytes()), _Bytes, _to_tensor)


def _to_bytes(tensor: torch.Tensor) -> _Bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 1:
        flat = flat.clone(memory_format=torch.contiguous_format)  # contiguous whatever its stride, but not as bytes
    return _Bytes(tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def _to_tensor(packed: _Bytes) -> torch.Tensor:
    if not packed.data:
        return torch.empty(packed.shape, dtype=packed.dtype)
    return torch.frombuffer(bytearray(packed.data), dtype=torch.uint8).view(packed.dtype).reshape(packed.shape)


def _walk(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, tuple):
        return tuple(_walk(item, kind, convert) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, _Bytes):
        changed = {item.name: _walk(getattr(value, item.name), kind, convert) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
