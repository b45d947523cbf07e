"""A reference, and what every one of them may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Unsupported(NotImplementedError):  # noqa: N818
    """A reference was asked for a mode of its operator that it does not have."""


@dataclass(frozen=True)
class Reference:
    """`compute` takes CPU tensors as the operator's arguments; `shapes` is there where torch_npu has no Meta kernel."""

    compute: Callable[..., Any]
    shapes: Callable[..., Any] | None = None


def only(op: str, **found: tuple[object, ...]) -> None:
    """Refuse arguments that are not what the reference takes: name=(found, taken, taken, ...)."""
    for name, (value, *taken) in found.items():
        if value not in taken:
            raise Unsupported(f"the reference of {op} has no {name}={value!r}, only {', '.join(map(repr, taken))}")


def absent(op: str, **found: object) -> None:
    """Refuse optional arguments that the reference does not know."""
    for name, value in found.items():
        if value is not None:
            raise Unsupported(f"the reference of {op} does not take {name}")
