"""What several operators ask of a site: None, or the reason why not, with the number that exceeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import sympy
import torch

from glmfuse.matching.layout import Layout

Size: TypeAlias = int | sympy.Expr

HALVES: Final = (torch.bfloat16, torch.float16)
FLOATS: Final = (*HALVES, torch.float32)


def first(reasons: Iterable[str | None]) -> str | None:
    """The first reason of several; a generator asks no further."""
    return next((reason for reason in reasons if reason is not None), None)


def stored(layout: Layout, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Whether a tensor has one of the operator's dtypes."""
    return None if layout.dtype in dtypes else f"dtype {layout.dtype} is none of {', '.join(map(str, dtypes))}"


def alike(**layouts: Layout) -> str | None:
    """Whether all of these tensors have one dtype."""
    found = {layout.dtype for layout in layouts.values()}
    said = ", ".join(f"{name} {layout.dtype}" for name, layout in layouts.items())
    return None if len(found) == 1 else f"the operator takes one dtype: {said}"


def at_most(name: str, size: Size, limit: int) -> str | None:
    """Whether a size is within a limit; one that varies is left to the operator, which checks each call."""
    return f"{name} {size} exceeds {limit}" if isinstance(size, int) and size > limit else None


def ranks(name: str, layout: Layout, least: int, most: int) -> str | None:
    """Whether a tensor has as many dimensions as the operator takes."""
    found = len(layout.shape)
    return None if least <= found <= most else f"{name} has {found} dimensions, not {least} to {most}"


def contiguous(name: str, layout: Layout) -> str | None:
    """Whether a tensor lies as the operator reads it."""
    step: Size = 1
    for size, stride in zip(reversed(layout.shape), reversed(layout.stride), strict=True):
        if size != 1 and stride != step:
            return f"{name} of shape {layout.shape} lies with strides {layout.stride}, not contiguous"
        step = step * size
    return None
