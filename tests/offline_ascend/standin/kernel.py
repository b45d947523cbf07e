"""A kernel of the fake device: the CPU's function, over the memory of npu tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.offline_ascend.standin import StandInError
from tests.offline_ascend.standin.capture import RECORDER
from tests.offline_ascend.standin.log import recordings
from tests.offline_ascend.standin.memory import Host, Moved, Shapes, move
from tests.offline_ascend.standin.overlap import race


@dataclass(frozen=True)
class Kernel:
    """What an overload does on npu tensors.

    `compute` runs on CPU tensors over the same memory. `shapes` runs on meta tensors while a graph is captured, when
    nothing is computed: the overload's own Meta kernel, unless it has none.
    """

    overload: torch._ops.OpOverload
    compute: Callable[..., Any]
    shapes: Callable[..., Any]

    @classmethod
    def of(cls, overload: torch._ops.OpOverload, compute: Any = None, shapes: Any = None) -> Kernel:
        """A kernel for the overload, by its own CPU kernel and its own Meta kernel unless others are given."""
        return cls(overload, compute or overload, shapes or overload)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Launch, or go onto the tape."""
        with torch.no_grad():
            if race(self.overload, args, kwargs):
                for log in recordings():
                    log.races.append(str(self.overload))
            return self._record(args, kwargs) if RECORDER.recording else self._launch(args, kwargs)

    def _launch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        RECORDER.check_idle()
        noted(self.overload)
        host = move(Host(), "cpu", args, kwargs)
        result = self.compute(*host.args, **host.kwargs)
        host.resize()
        return host.result(result, stored)

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        noted(self.overload)
        _no_host_memory(self.overload, (args, kwargs))
        meta = move(Shapes(), "meta", args, kwargs)
        result = meta.result(self.shapes(*meta.args, **meta.kwargs), allocated)
        RECORDER.add(_task(self.compute, move(Host(), "cpu", args, kwargs), result))
        return result


def noted(overload: torch._ops.OpOverload) -> None:
    """Tell the recordings what was asked: launched, captured, or the update of what was captured."""
    for log in recordings():
        place = log.captured if RECORDER.tape is not None else log.updated if RECORDER.recording else log.launched
        place.append(str(overload))


def _task(compute: Callable[..., Any], host: Moved, result: Any) -> Callable[[], None]:
    """What a replay does: only host views of raw addresses are held, so that npu memory is freed as ever."""
    written = [Host().tensor(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    inputs = frozenset(host.origin)
    args, kwargs = host.args, host.kwargs

    def task() -> None:
        with torch.no_grad():
            values = compute(*args, **kwargs)
        for place, value in zip(written, _tensors(values), strict=True):
            if id(value) not in inputs:
                place.copy_(value)

    return task


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def allocated(like: Tensor) -> Tensor:
    """An npu tensor of the same shape, strides and dtype, from torch_npu's allocator."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="npu")


def stored(value: Tensor) -> Tensor:
    """An npu tensor that holds a CPU tensor's numbers."""
    place = allocated(value)
    Host().tensor(place).copy_(value)
    return place


def _no_host_memory(overload: torch._ops.OpOverload, arguments: Any) -> None:
    """A capture that reads or writes the host would replay it at a stale address; a device refuses it."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.dim():
            raise StandInError(f"{overload} reads or writes host memory while a graph is captured")
