"""Which experts a token goes to, and the way there and back.

tokens [n, hidden]; each goes to k experts. "Expanded" rows are ordered by expert: [n * k, hidden].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Reference, absent, only
from tests.offline_ascend.standin.references.rounding import by_rows, int8

NOWHERE = 2**31 - 1  # sorts behind every expert


def moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [n, k] of x's dtype, experts [n, k] int32, scores [n, experts] fp32 (on a chip only with out_flag).

    Selection is by score + bias, weights are the scores without it. norm_type 1 is sigmoid, and always normalises;
    0 is softmax. A group scores its best expert, or its best two added (group_select_mode 1). Of equals the lower
    expert wins.
    """
    absent("npu_moe_gating_top_k", input_ids=input_ids, tid2eid=tid2eid)
    only("npu_moe_gating_top_k", norm_type=(norm_type, 0, 1))
    scores = torch.sigmoid(x.float()) if norm_type == 1 else torch.softmax(x.float(), -1)
    choice = scores if bias is None else scores + bias.float()
    if group_count > 1 and k_group < group_count:
        choice = _best_groups(choice, group_count, k_group, 1 if group_select_mode == 0 else 2)
    experts = _descending(choice)[:, :k].clone(memory_format=torch.contiguous_format)
    weights = scores.gather(1, experts)
    if norm_type == 1 or renorm == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return (weights * routed_scaling_factor).to(x.dtype), experts.to(torch.int32), scores


def _best_groups(choice: Tensor, count: int, kept: int, best: int) -> Tensor:
    groups = choice.unflatten(-1, (count, -1))
    order = _descending(groups.topk(best, -1).values.sum(-1))[:, :kept]
    keep = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter_(1, order, True)
    return groups.masked_fill(~keep.unsqueeze(-1), float("-inf")).flatten(1)


def _descending(values: Tensor) -> Tensor:
    return torch.argsort(values, dim=-1, descending=True, stable=True)


def moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows by expert, where each went, how many each expert has, and scales.

    row_idx_type 0 says for token i's j-th expert, at i * k + j, which expanded row it is, or -1 when the expert is not
    in active_expert_range; 1 says for each expanded row where it came from. Counts are int64, or their running sum
    with expert_tokens_num_type 0. Rows behind the last active one are not written by the kernel (zeros here).
    """
    only("npu_moe_init_routing_v2", drop_pad_mode=(drop_pad_mode, 0), x_dtype=(x_dtype, None))
    only("npu_moe_init_routing_v2", expert_tokens_num_type=(expert_tokens_num_type, 0, 1))
    tokens, k = expert_idx.shape
    low, high = active_expert_range or (0, expert_num)
    experts = expert_idx.reshape(-1).long()
    local = torch.where((experts >= low) & (experts < high), experts, NOWHERE)
    order = torch.argsort(local, stable=True)
    active = int((local < NOWHERE).sum())
    owner = local[order[:active]] - low
    counts = torch.bincount(owner, minlength=high - low)
    rows = torch.zeros(tokens * k, x.shape[-1], dtype=x.dtype)
    rows[:active] = x[order[:active] // k]
    expanded, scales = _expanded(rows, owner, order // k, quant_mode, scale, offset)
    return (
        expanded,
        _places(order, active, row_idx_type),
        _counted(counts, expert_tokens_num_flag, expert_tokens_num_type),
        scales,
    )


def _places(order: Tensor, active: int, kind: int) -> Tensor:
    if kind == 1:
        return order.to(torch.int32)
    places = torch.full_like(order, -1, dtype=torch.int32)
    places[order[:active]] = torch.arange(active, dtype=torch.int32)
    return places


def _counted(counts: Tensor, wanted: bool, kind: int) -> Tensor:
    if not wanted:
        return torch.empty(0, dtype=torch.int64)
    return counts.cumsum(0) if kind == 0 else counts


def _expanded(
    rows: Tensor, owner: Tensor, source: Tensor, mode: int, scale: Tensor | None, offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    if mode == -1:
        return rows, torch.zeros(len(rows)) if scale is None else scale[source]
    if mode == 0:
        assert scale is not None
        assert offset is not None
        return int8(rows.float() * scale.float() + offset.float()), torch.empty(0)
    only("npu_moe_init_routing_v2", quant_mode=(mode, 1))
    values = rows.float()
    if scale is not None:
        values[: len(owner)] *= scale.float()[owner]
    quantised, scales = by_rows(values)
    return int8(quantised), scales


def moe_token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows by expert, and for each of token i's j-th expert, at i * k + j, its expanded row: argsort of argsort."""
    only("npu_moe_token_permute", padded_mode=(padded_mode, False))
    experts = indices.reshape(-1)
    k = indices.shape[1] if indices.dim() == 2 else 1
    order = torch.argsort(experts.long(), stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return tokens[order[: num_out_tokens or len(order)] // k], places.to(torch.int32)


def moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: list[int] | None = None,
) -> Tensor:
    """out[i] = RN(sum over j of expanded[sorted_indices[i * k + j]] * probs[i, j]), in fp32, in the order of j.

    The docstring's example numbers the rows the other way; the kernel and its README number them so.
    """
    only("npu_moe_token_unpermute", padded_mode=(padded_mode, False))
    k = 1 if probs is None else probs.shape[1]
    rows = permuted_tokens[sorted_indices.long()].float().unflatten(0, (-1, k))
    if probs is not None:
        rows = rows * probs.float().unsqueeze(-1)
    return _added(rows).to(permuted_tokens.dtype)


def moe_token_unpermute_for_backward(permuted_tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """What `npu_moe_token_unpermute` is on an npu: also the rows, kept for a backward pass."""
    return moe_token_unpermute(permuted_tokens, *args, **kwargs), permuted_tokens


def _added(rows: Tensor) -> Tensor:
    """The sum over axis 1, one after the other."""
    total = rows[:, 0]
    for j in range(1, rows.shape[1]):
        total = total + rows[:, j]
    return total


def moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """out[i] = skip1 + skip2 + sum over j of scales[i, j] * (expanded[place of i, j] + bias[expert of i, j]).

    Places are numbered j * n + i with drop_pad_mode 0 and 1, and i * k + j with 2 and 3, which is what
    `moe_init_routing_v2` gives. A place of -1 adds nothing.
    """
    each = (k or 1) if scales is None else scales.shape[1]
    n = expanded_src_to_dst_row.numel() // each
    by_choice = (drop_pad_mode or 0) in (0, 1)
    place = expanded_src_to_dst_row.long()
    place = place.view(each, n).t() if by_choice else place.view(n, each)
    rows = expanded_permuted_rows.flatten(0, -2)[place.clamp(min=0)].float() * (place >= 0).unsqueeze(-1)
    if bias is not None:
        assert export_for_source_row is not None, "a bias needs the experts: export_for_source_row"
        rows = rows + bias.float()[export_for_source_row.long()]
    if scales is not None:
        rows = rows * scales.float().unsqueeze(-1)
    out = _added(rows)
    for skip in (skip1, skip2):
        out = out if skip is None else out + skip.float()
    return out.to(expanded_permuted_rows.dtype)


OPS = {
    "npu_moe_gating_top_k": Reference(moe_gating_top_k),
    "npu_moe_init_routing_v2": Reference(moe_init_routing_v2),
    "npu_moe_token_permute": Reference(moe_token_permute),
    "npu_moe_token_unpermute": Reference(moe_token_unpermute),
    "_npu_moe_token_unpermute": Reference(moe_token_unpermute_for_backward),
    "npu_moe_finalize_routing": Reference(moe_finalize_routing),
}
