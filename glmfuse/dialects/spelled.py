"""One operator of another library, or a few, as a spelling of a pattern."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glmfuse.matching.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Spelled:
    """A pattern in a library's operators.

    function: of the pattern's arguments; its name is the spelling's. ops: what it calls, "namespace::name".
    rounds_alike: whether the operators round where the pattern does. requantises: whether what they round otherwise is
    then made int8, so that numbers land in another step.
    """

    pattern: Pattern
    function: Callable[..., Any]
    ops: tuple[str, ...]
    rounds_alike: bool = False
    requantises: bool = False

    @property
    def is_there(self) -> bool:
        """Whether the library that defines the operators is loaded."""
        return all(_is_defined(*op.split("::")) for op in self.ops)


def _is_defined(namespace: str, name: str) -> bool:
    return hasattr(getattr(torch.ops, namespace), name)
