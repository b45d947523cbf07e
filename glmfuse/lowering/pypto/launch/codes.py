"""What kernels of codes ask of a site, and how their weights lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.limits import fixed
from glmfuse.matching.select import Request

CODES: Final[Mapping[torch.dtype, str]] = {torch.int8: "DT_INT8", torch.float8_e4m3fn: "DT_FP8E4M3"}
"""dtypes of weights that are multiplied as they are, by PyPTO's names."""

UNIT: Final = 16
"""Sizes of a matrix of codes are multiples of it; what is less than a tile of 32 is filled up."""


def multiplied(chip: Chip, site: Request, weight: str) -> str | None:
    """Whether the chip multiplies codes of the weight's dtype, and its sizes are whole."""
    w = site.tensors[weight]
    if w.dtype not in CODES:
        return f"{weight} is {w.dtype}, none of {', '.join(map(str, CODES))}"
    if w.dtype == torch.float8_e4m3fn and not chip.has_float8:
        return f"{site.pattern.name} wants a SoC that multiplies float8, as Ascend950; {chip.name} has none"
    for size in w.shape:
        if (reason := fixed(f"a size of {weight}", size)) is not None:
            return reason
        if size % UNIT != 0:
            return f"{size} of {weight} is no multiple of {UNIT}"
    return None


def scales_fit(site: Request, names: Iterable[str]) -> str | None:
    """Whether each scale is fp32 with a number for each output of its weight."""
    for name in names:
        scale, w = site.tensors.get(f"s_{name}"), site.tensors.get(f"w_{name}")
        if scale is None or w is None:
            continue
        if scale.dtype != torch.float32:
            return f"dtype {scale.dtype} of s_{name} is none of torch.float32"
        if scale.shape[-1] != w.shape[-1]:
            return f"s_{name} has {scale.shape[-1]} numbers for {w.shape[-1]} outputs"
    return None


def is_held(*weights: Tensor) -> bool:
    """Whether weights [in, out] are transposes of what is held [out, in]; the kernel then reads what is held."""
    return all(w.t().is_contiguous() for w in weights)


def as_read(w: Tensor, *, held: bool) -> Tensor:
    """The matrix as the kernel reads it: what is held, without a copy."""
    return w.t() if held else w
