"""What every kernel asks of a site: None, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy
import torch

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.tiling import FP32, tail
from glmfuse.matching.layout import Layout

DTYPES: Mapping[torch.dtype, str] = {
    torch.bfloat16: "DT_BF16",
    torch.float16: "DT_FP16",
    torch.float32: "DT_FP32",
}
"""Storage dtypes that kernels take, by PyPTO's names."""


def first(*checks: Callable[[], str | None]) -> str | None:
    """The first reason of several; later checks may rely on earlier ones."""
    return next((reason for check in checks if (reason := check()) is not None), None)


def half(layout: Layout) -> str | None:
    """Whether the dtype is one that the cube cores multiply at full speed."""
    halves = (torch.bfloat16, torch.float16)
    return None if layout.dtype in halves else f"dtype {layout.dtype} is none of {', '.join(map(str, halves))}"


def halves(interleaved: bool) -> str | None:
    """Whether the pairs that rotary turns lie half a head apart."""
    return "pairs of neighbours; the kernel turns halves" if interleaved else None


def same_dtype(one: Layout, other: Layout) -> str | None:
    """Whether both operands of a product are stored alike."""
    return None if one.dtype == other.dtype else f"operands of {one.dtype} and {other.dtype} are not multiplied"


def row_fits(chip: Chip, width: int | sympy.Expr, live: int) -> str | None:
    """Whether so many fp32 rows of this width are in the unified buffer at once."""
    if not isinstance(width, int):
        return fixed("a width", width)
    needed = live * tail(chip, width) * FP32
    return None if needed <= chip.ub else f"{needed} bytes for {live} rows of {width} exceed the {chip.ub} of UB"


def storable(layout: Layout) -> str | None:
    """Whether PyPTO has the tensor's dtype."""
    return None if layout.dtype in DTYPES else f"dtype {layout.dtype} is none of {', '.join(map(str, DTYPES))}"


def fixed(name: str, size: int | sympy.Expr) -> str | None:
    """Whether a size that tiles depend on is a number; only the number of tokens may vary."""
    return None if isinstance(size, int) else f"{name} varies ({size}); tiles need a number"


def contiguous(layout: Layout) -> str | None:
    """Whether an output lies in memory as a kernel writes it."""
    step: int | sympy.Expr = 1
    for size, stride in zip(reversed(layout.shape), reversed(layout.stride), strict=True):
        if size != 1 and stride != step:
            return f"the output lies with strides {layout.stride}, not contiguous"
        step = step * size
    return None


def router_dtypes(x: Layout, w: Layout) -> str | None:
    """Whether the router's product can be taken: both stored alike, or the weight in fp32."""
    if w.dtype == torch.float32:
        return storable(x)
    return storable(x) or same_dtype(x, w)
