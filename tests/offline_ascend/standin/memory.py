"""An npu tensor's memory seen as the CPU's: under the stand-in runtime they are the same bytes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

BYTE = torch.uint8


@dataclass
class Host:
    """The arguments of one call, on the host.

    Views of one npu storage are views of one host storage, so that a CPU kernel sees overlaps as torch_npu's do.
    """

    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def tensor(self, tensor: Tensor) -> Tensor:
        """A CPU tensor over the same bytes, of the same shape, strides and dtype."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        key = storage._cdata
        if key not in self.storages:
            raw = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
            self.storages[key] = torch.frombuffer(raw, dtype=BYTE).untyped_storage()
        return _over(self.storages[key], tensor, "cpu")


@dataclass
class Shapes:
    """The arguments of one call without their bytes: npu tensors become meta tensors, and views stay views."""

    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def tensor(self, tensor: Tensor) -> Tensor:
        """A meta tensor of the same shape, strides and dtype."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            size = storage.nbytes()
            self.storages[storage._cdata] = torch.empty(size, dtype=BYTE, device="meta").untyped_storage()
        return _over(self.storages[storage._cdata], tensor, "meta")


def _over(storage: torch.UntypedStorage, tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device=device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def on_npu(value: Any) -> bool:
    """Whether a value is a tensor that lies on the fake device."""
    return isinstance(value, Tensor) and value.device.type == "npu"


@dataclass(frozen=True)
class Moved:
    """Arguments moved off the npu, and the npu tensor that each of the moved tensors stands for."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: dict[int, Tensor]
    tensors: tuple[Tensor, ...]

    def resize(self) -> None:
        """Follow what a kernel did to an empty `out=`: it is given the size of the result."""
        for moved in self.tensors:
            there = self.origin[id(moved)]
            if there.shape != moved.shape:
                Host().tensor(there.resize_(moved.shape)).copy_(moved)

    def result(self, value: Any, fresh: Any) -> Any:
        """The npu result of a result: the argument that it is, or `fresh(it)`."""

        def leaf(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            return self.origin[id(item)] if id(item) in self.origin else fresh(item)

        return pytree.tree_map(leaf, value)


def move(place: Host | Shapes, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moved:
    """The arguments of a call with npu tensors and npu devices replaced by those of `place`."""
    origin: dict[int, Tensor] = {}
    tensors: list[Tensor] = []

    def leaf(item: Any) -> Any:
        if isinstance(item, torch.device) and item.type == "npu":
            return torch.device(device)
        if isinstance(item, torch.Generator) and item.device.type == "npu":
            return None  # the CPU's own numbers: a chip's cannot be had
        if not on_npu(item):
            return item
        moved = place.tensor(item)
        origin[id(moved)] = item
        tensors.append(moved)
        return moved

    args, kwargs = pytree.tree_map(leaf, (args, kwargs))
    return Moved(args, kwargs, origin, tuple(tensors))
