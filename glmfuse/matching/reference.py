"""What an op of a pattern runs: the pattern function, on real tensors and on fake ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glmfuse.capture import as_tuple
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import Pattern, patterns_as_ops


def reference_function(made: Pattern, names: list[str]) -> Callable[..., Any]:
    """The pattern function as an op calls it: positional, inner patterns as their functions."""

    def reference(*values: Any) -> Any:
        arguments: dict[str, Any] = {p.name: None for p in made.parameters}
        arguments.update(zip(names, values, strict=True))
        with patterns_as_ops(False):
            return made.function(**arguments)

    return reference


def fake_function(made: Pattern, names: list[str]) -> Callable[..., Any]:
    """The same on fake tensors: of arguments that lie alike, in known sizes, the function is asked only once.

    Larger patterns are traced in every variant, and call this one in each.
    """
    reference = reference_function(made, names)
    known: dict[Any, tuple[_Result, ...]] = {}

    def fake(*values: Any) -> Any:
        given = [_kind(value) for value in values]
        if not all(_is_known(each) for each in given):
            return reference(*values)
        kind = (torch.get_default_dtype(), *given)
        if kind not in known:
            results = reference(*values)
            found = tuple(_Result.of(result) for result in as_tuple(results))
            if not all(_is_known(each.layout) and isinstance(each.offset, int) for each in found):
                return results
            known[kind] = found
        made = tuple(result.empty() for result in known[kind])
        return made[0] if len(made) == 1 else made

    return fake


@dataclass(frozen=True, slots=True)
class _Result:
    """What the function returned once: how it lies, and where in its storage, as a slice of something may."""

    layout: Layout
    offset: int | torch.SymInt
    storage: int

    @classmethod
    def of(cls, result: torch.Tensor) -> _Result:
        storage = result.untyped_storage().nbytes() // result.element_size()
        return cls(Layout.of(result), result.storage_offset(), storage)

    def empty(self) -> torch.Tensor:
        at = self.layout
        if not self.offset:
            return torch.empty_strided(at.shape, at.stride, dtype=at.dtype, device=at.device)
        whole = torch.empty(self.storage, dtype=at.dtype, device=at.device)
        return whole.as_strided(at.shape, at.stride, self.offset)


def _kind(value: Any) -> Any:
    return Layout.of(value) if isinstance(value, torch.Tensor) else (type(value), value)


def _is_known(kind: Any) -> bool:
    if isinstance(kind, Layout):
        return all(isinstance(size, int) for size in (*kind.shape, *kind.stride))
    return not isinstance(kind[1], torch.SymInt | torch.SymFloat)
