"""The choice of experts from router logits."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern

_SIZES = (
    {"T": 23, "n_group": 5, "M": 7, "topk_group": 3, "top_k": 11},
    {"T": 29, "n_group": 11, "M": 13, "topk_group": 4, "top_k": 17},
)


@pattern(
    dims={"logits": "T n_group*M", "bias": "n_group*M"},
    examples=_SIZES,
    dtypes={"logits": torch.float32},
    unordered=True,
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
    scores = logits.sigmoid()
    choice = scores + bias
    experts = logits.shape[-1]
    groups = choice.view(-1, n_group, experts // n_group).topk(2, dim=-1)[0].sum(dim=-1)
    best = torch.topk(groups, k=topk_group, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(groups).scatter(1, best, 1)
    mask = mask.unsqueeze(-1).expand(-1, n_group, experts // n_group).reshape(-1, experts)
    choice = choice.masked_fill(~mask.bool(), float("-inf"))
    ids = torch.topk(choice, k=top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * scale, ids
