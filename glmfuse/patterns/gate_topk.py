"""The router of a mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.linear import linear
from glmfuse.patterns.route_topk import route_topk

_SIZES = (
    {"n_group": 5, "M": 7, "topk_group": 3, "top_k": 11},
    {"n_group": 11, "M": 13, "topk_group": 4, "top_k": 17},
)


@pattern(
    dims={"x": "T H", "w": "n_group*M H", "bias": "n_group*M"},
    examples=_SIZES,
    cases=({}, {"w": torch.float32}),  # a router may be stored in fp32 beside a half model, as in vLLM
    unordered=2,
)
def gate_topk(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Router logits in fp32 and the experts that they choose.

    x [tokens, hidden], w [experts, hidden], bias [experts] -> weights [tokens, top_k] fp32, ids
    [tokens, top_k] int64. Source: Glm4MoeTopkRouter of transformers.
    """
    logits = linear(x.to(torch.float32), w.to(torch.float32), None)
    return route_topk(logits, bias, top_k, n_group, topk_group, renormalize, scale)
