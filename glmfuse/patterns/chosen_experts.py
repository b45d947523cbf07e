"""The experts of each token one by one, with their weights gathered; no pattern by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.patterns.grouped_mlp import combined, take
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.quantize import HALVES
from glmfuse.patterns.swiglu import swiglu

Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows, and the scale of each."""

Layer = tuple[Tensor, ...]
"""What all experts have of a layer, one behind the other: weights, scales, and what else its product takes."""

Product = Callable[[Tensor, Tensor, Layer, Tensor, torch.dtype], Tensor]
"""rows, per_token, layer, experts, dtype -> each row times the weights of its expert, of dtype."""


def chosen_experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    gate_up: Layer,
    down: Layer,
    quantize: Quantize,
    product: Product,
) -> Tensor:
    """The sum over a of weights[t, a] times the gated feed-forward of row t by expert ids[t, a]; x's shape and dtype.

    Each step rounds where the same step of one expert alone would. Every choice has a copy of its expert's weights:
    shapes are known before, and a kernel that sorts by expert gives the same numbers.
    """
    require(x.dtype in HALVES, "x must be bf16 or fp16", x.dtype)
    experts = ids.reshape(-1)
    rows, per_token = quantize(rows_of(x))
    rows, per_token = each_choice(rows, ids), each_choice(per_token, ids)
    hidden = swiglu(product(rows, per_token, gate_up, experts, x.dtype), None)
    outputs = product(*quantize(hidden), down, experts, x.dtype)
    return combined(outputs * weights.reshape(-1).unsqueeze(-1), x, ids)


def each_choice(tokens: Tensor, ids: Tensor) -> Tensor:
    """What each token has, once for each of its choices: [tokens, ...] -> [tokens * active, ...]."""
    shape = (-1, ids.shape[1], *(-1 for _ in tokens.shape[1:]))
    return tokens.unsqueeze(1).expand(shape).flatten(0, 1)


def products(rows: Tensor, w: Tensor, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row times its expert's matrix, in dtype.  rows [N, in], w [experts, in, out] -> [N, out]."""
    return torch.bmm(rows.to(dtype).unsqueeze(1), take(w, experts).to(dtype)).squeeze(1)
