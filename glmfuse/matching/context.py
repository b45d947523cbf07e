"""What stands around the sites of a pattern: arguments of it that another function makes of the others.

A router and an expert that reads rows which x was quantised to before have nothing in common but that relation. The
search looks for it together with the pattern; the site does not contain it, and its proof does not need it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glmfuse.capture import as_tuple


@dataclass(frozen=True, slots=True)
class Context:
    """names: the tensor arguments that are made. function: of some of the others, gives as many tensors."""

    names: tuple[str, ...]
    function: Callable[..., Any]

    @property
    def reads(self) -> tuple[str, ...]:
        """The arguments that the others are made of."""
        return tuple(inspect.signature(self.function).parameters)

    def around(self, function: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
        """A function of the pattern's arguments as it stands in a graph; returns what is made behind its results."""

        def in_context(**arguments: Any) -> tuple[torch.Tensor, ...]:
            made = as_tuple(self.function(**{name: arguments[name] for name in self.reads}))
            results = function(**{**arguments, **dict(zip(self.names, made, strict=True))})
            return *as_tuple(results), *made

        return in_context
