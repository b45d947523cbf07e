"""Derived values by weight, one for all graphs of a process, and made anew when the weight changed.

A weight that is assigned anew, or whose `.data` is swapped, has another storage; `load_state_dict` and other
writes raise its version. A write through `p.data` shows nowhere: that is what the option `frozen` promises
not to do, or to follow by `refresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from glmfuse.errors import OptionError
from glmfuse.lowering.weights.hoist import Derived


@dataclass(frozen=True, slots=True)
class Stamp:
    """A weight as it was; the weak reference keeps its storage's identity from being given to another."""

    storage: StorageWeakRef
    address: int
    version: int

    @classmethod
    def of(cls, weight: Tensor) -> Stamp:
        """The weight as it is now."""
        return cls(StorageWeakRef(weight.untyped_storage()), weight.data_ptr(), _version(weight))

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight shows no change."""
        is_same = weight.untyped_storage()._cdata == self.storage.cdata and weight.data_ptr() == self.address
        return is_same and _version(weight) == self.version


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version


@dataclass(slots=True)
class _Entry:
    value: Tensor
    stamps: tuple[Stamp, ...] | None

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """Whether the value is still that of these weights."""
        pairs = zip(self.stamps or (), weights, strict=self.stamps is not None)
        return self.stamps is not None and all(stamp.holds(weight) for stamp, weight in pairs)


_MADE: Any = WeakTensorKeyDictionary()
"""By its first weight, the entries of each piece of code."""


def value_of(derived: Derived, weights: Sequence[Tensor]) -> Tensor:
    """The value for these weights: as it was made before, or made now where one of them changed."""
    if any(isinstance(weight, FakeTensor) for weight in weights):
        return derived.compute(*weights)
    entries: dict[str, _Entry] = _MADE.setdefault(weights[0], {})
    entry = entries.get(derived.key)
    if entry is not None and entry.holds(weights):
        return entry.value
    return _make(derived, weights, entries).value


def _make(derived: Derived, weights: Sequence[Tensor], entries: dict[str, _Entry]) -> _Entry:
    with torch.inference_mode(False), torch.no_grad():
        made = derived.compute(*weights)
        known = entries.get(derived.key)
        if known is not None and known.value.shape == made.shape and known.value.device == made.device:
            made = known.value.copy_(made)  # where captured graphs expect it
    entries[derived.key] = _Entry(made, tuple(Stamp.of(weight) for weight in weights))
    return entries[derived.key]


def refresh(model: torch.nn.Module) -> None:
    """Make anew, before their next use, the values that the option `frozen` keeps of this model's weights.

    Needed after `p.data.copy_(...)` alone: assignments, `.data` swaps and `load_state_dict` are noticed.
    """
    if not isinstance(model, torch.nn.Module):
        raise OptionError(f"glmfuse.refresh takes the model, a torch.nn.Module, not {type(model).__name__}.")
    changed = {id(weight) for weight in model.parameters()}
    for weight, entries in list(_MADE.items()):
        if id(weight) in changed:
            for entry in entries.values():
                entry.stamps = None


def bind(compiled: Callable[[list[Any]], Any], derived: Sequence[Derived]) -> Callable[[list[Any]], Any]:
    """The graph's callable with its derived arguments filled in; boxed, like the one given."""

    def run(args: list[Any]) -> Any:
        given = [*args, *(value_of(item, [args[place] for place in item.sources]) for item in derived)]
        args.clear()
        return compiled(given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
