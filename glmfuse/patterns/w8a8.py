"""The scheme whose rows are quantised by a scale that is known before; no pattern by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quantize import HALVES, quantize

HOLDS = (torch.int8,)
Layer = tuple[Tensor | None, Tensor | None, Tensor | None]
"""w, scale, quant_bias; a layer that is not there has no w."""

Input = tuple[Tensor, Tensor, Tensor | None]
"""factor, offset and inverse, by which a layer's input is quantised: x * factor + offset."""


def linears(x: Tensor, quantised: Input, *layers: Layer) -> tuple[Tensor, ...]:
    """x through each layer that is there, quantised once.  x [..., in] bf16 or fp16 -> [..., out] of each."""
    require(x.dtype in HALVES, "x must be bf16 or fp16", x.dtype)
    rows = quantize(rows_of(x), *quantised, False)
    return tuple(
        quant_linear(rows, w, scale, None, whole, None, x.dtype).view(*x.shape[:-1], scale.shape[-1])
        for w, scale, whole in layers
        if w is not None and scale is not None
    )


def held(name: str, inputs: str, outputs: str, merged: str = "") -> dict[str, str]:
    """The dims of a weight `w_<name>` [inputs, outputs], its scale and its int32 bias.

    `merged`: its outputs where an argument is absent, "OUTPUTS without NAME".
    """
    more, _, absent = merged.partition(" without ")
    w = f"{inputs} {outputs}" + (f"; without {absent}: {inputs} {more}" if merged else "")
    row = outputs + (f"; without {absent}: {more}" if merged else "")
    return {f"w_{name}": w, f"s_{name}": row, f"c_{name}": row}


def dtypes(*names: str) -> dict[str, torch.dtype]:
    """Those of weights of these names, of their scales and of their biases."""
    kinds = {"w": torch.int8, "s": torch.float32, "c": torch.int32}
    return {f"{kind}_{name}": dtype for name in names for kind, dtype in kinds.items()}
