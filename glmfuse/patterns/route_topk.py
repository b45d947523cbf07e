"""The choice of experts from router logits."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern, spelling_of

_SIZES = (
    {"T": 23, "n_group": 5, "M": 7, "topk_group": 5, "top_k": 11},
    {"T": 29, "n_group": 11, "M": 13, "topk_group": 4, "top_k": 17},
)
"""Once with all groups chosen and once with some: a number that the two fill unlike is one of the sizes' making."""


def _route(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
    fill: float,
) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    choice = scores + bias
    experts = logits.shape[-1]
    groups = choice.view(-1, n_group, experts // n_group).topk(2, dim=-1)[0].sum(dim=-1)
    best = torch.topk(groups, k=topk_group, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(groups).scatter(1, best, 1)
    mask = mask.unsqueeze(-1).expand(-1, n_group, experts // n_group).reshape(-1, experts)
    choice = choice.masked_fill(~mask.bool(), fill)
    ids = torch.topk(choice, k=top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * scale, ids


@pattern(
    dims={"logits": "T n_group*M", "bias": "n_group*M"},
    examples=_SIZES,
    dtypes={"logits": torch.float32},
    unordered=2,
)
def route_topk(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Weights and ids of each token's experts, in no particular order.

    logits [tokens, experts] fp32, bias [experts] -> weights [tokens, top_k] fp32, ids [tokens, top_k]
    int64. The bias shifts the choice, not the weight; only experts of the topk_group best groups, by
    the sum of each group's two best, can be chosen. Source: DeepSeek-V3 report, equations 12 to 16;
    Glm4MoeTopkRouter of transformers.
    """
    return _route(logits, bias, top_k, n_group, topk_group, renormalize, scale, float("-inf"))


def _fill_of_old(n_group: int, topk_group: int) -> float:
    """0, where no group is left out and none is filled: elsewhere a group left out could win with it."""
    return 0.0 if topk_group == n_group else float("-inf")


@spelling_of(route_topk)
def zero_filled(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Groups left out score 0, of which there are none.  Source: Glm4MoeMoE of transformers 5.0 to 5.5."""
    return _route(logits, bias, top_k, n_group, topk_group, renormalize, scale, _fill_of_old(n_group, topk_group))


@spelling_of(route_topk)
def zero_filled_4_57(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same with the bias as a row.  Source: Glm4MoeTopkRouter of transformers 4.57."""
    row, fill = bias.unsqueeze(0), _fill_of_old(n_group, topk_group)
    return _route(logits, row, top_k, n_group, topk_group, renormalize, scale, fill)
