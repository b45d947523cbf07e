"""The references of experts, attention and caches against other formulas of the same functions, in fp64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.offline_ascend.arguments import BF16, Draw
from tests.offline_ascend.arguments_moe import ARGUMENTS
from tests.offline_ascend.standin.references.reference import Unsupported

ops = torch.ops.npu
SEEDS = range(8)
STEP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-20}


def close(found: Tensor, exact: Tensor) -> None:
    """To within two roundings of the largest."""
    step = 2 * STEP[found.dtype]
    torch.testing.assert_close(found.double(), exact.double(), rtol=step, atol=step * exact.abs().max().item())


@pytest.mark.parametrize("seed", range(16))
def test_gating_chooses_as_one_would_by_hand(seed: int) -> None:
    drawn = ARGUMENTS["npu_moe_gating_top_k"](Draw(seed))
    (x, k), o = drawn.args, drawn.kwargs
    weights, experts, scores = ops.npu_moe_gating_top_k(*drawn.args, **drawn.kwargs)
    wide = x.float()
    exact = wide.sigmoid() if o["norm_type"] else wide.softmax(-1)
    assert torch.equal(scores, exact)
    size = x.shape[1] // o["group_count"]
    for row, chosen, given in zip(exact, experts.tolist(), weights, strict=True):
        choice = (row if o["bias"] is None else row + o["bias"].float()).tolist()
        best = [sorted(choice[g * size : (g + 1) * size])[::-1] for g in range(o["group_count"])]
        score = [sum(b[: 2 if o["group_select_mode"] else 1]) for b in best]
        groups = sorted(range(len(score)), key=lambda g: -score[g])[: o["k_group"]]
        among = [e for e in range(len(choice)) if e // size in groups]
        assert chosen == sorted(among, key=lambda e: -choice[e])[:k]
        expected = row[chosen] / row[chosen].sum() if o["norm_type"] else row[chosen]
        close(given, expected * o["routed_scaling_factor"])


def test_gating_of_equals_takes_the_lower_expert() -> None:
    _, experts, _ = ops.npu_moe_gating_top_k(torch.ones(2, 8), 3, norm_type=1)
    assert experts.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("seed", SEEDS)
def test_routing_there_and_back_adds_the_weighted_rows(seed: int) -> None:
    d = Draw(seed)
    tokens, k, experts = d.size(1, 9), d.size(1, 4), d.size(4, 9)
    x, weights = d.normal(tokens, 32), d.positive(tokens, k, dtype=BF16)
    chosen = torch.stack([d.distinct(k, experts, torch.int32) for _ in range(tokens)])
    rows, places, counts, _ = ops.npu_moe_init_routing_v2(
        x, chosen, expert_num=experts, active_num=tokens * k, expert_tokens_num_type=1, expert_tokens_num_flag=True,
        active_expert_range=[0, experts],
    )  # fmt: skip
    assert counts.tolist() == [(chosen == e).sum().item() for e in range(experts)]
    ordered = chosen.reshape(-1).sort(stable=True).values
    assert torch.equal(ordered[places.long()], chosen.reshape(-1))
    exact = x.double() * weights.double().sum(-1, keepdim=True)
    permuted, indices = ops.npu_moe_token_permute(x, chosen)
    assert torch.equal(permuted, rows)
    assert torch.equal(indices, places)
    close(ops.npu_moe_token_unpermute(rows, places, weights), exact)
    close(ops.npu_moe_finalize_routing(rows, None, None, None, weights, places, None, drop_pad_mode=2), exact)
    by_choice = places.view(tokens, k).t().reshape(-1)
    close(ops.npu_moe_finalize_routing(rows, None, None, None, weights, by_choice, None, drop_pad_mode=0), exact)


@pytest.mark.parametrize("seed", SEEDS)
def test_routing_to_some_experts_marks_the_others(seed: int) -> None:
    drawn = ARGUMENTS["npu_moe_init_routing_v2"](Draw(seed))
    (x, chosen), low = drawn.args, drawn.kwargs["active_expert_range"][0]
    options = {**drawn.kwargs, "quant_mode": -1, "row_idx_type": 0}
    rows, places, _, _ = ops.npu_moe_init_routing_v2(x, chosen, **options)
    for at, (expert, place) in enumerate(zip(chosen.reshape(-1).tolist(), places.tolist(), strict=True)):
        assert (place == -1) == (expert < low)
        if place >= 0:
            assert torch.equal(rows[place], x[at // chosen.shape[1]])


@pytest.mark.parametrize("seed", SEEDS)
def test_finalize_adds_skips_and_the_experts_bias(seed: int) -> None:
    args = ARGUMENTS["npu_moe_finalize_routing"](Draw(seed)).args
    mode = ARGUMENTS["npu_moe_finalize_routing"](Draw(seed)).kwargs["drop_pad_mode"]
    rows, skip, _, bias, scales, places, owner = args
    n, k = scales.shape
    exact = torch.zeros(n, rows.shape[1], dtype=torch.double) if skip is None else skip.double()
    for i in range(n):
        for j in range(k):
            row = rows[places[j * n + i if mode == 0 else i * k + j]].double()
            exact[i] += scales[i, j].double() * (row if bias is None else row + bias[owner[i, j]].double())
    close(ops.npu_moe_finalize_routing(*args, drop_pad_mode=mode), exact)


def each(weight: Tensor, ends: list[int], x: Tensor) -> Tensor:
    """Every group's product, in fp64."""
    return torch.cat([x[a:b].double() @ w.double() for (a, b), w in zip(pairwise([0, *ends]), weight, strict=True)])


@pytest.mark.parametrize("seed", range(16))
def test_grouped_matmul_is_a_product_for_each_group(seed: int) -> None:
    drawn = ARGUMENTS["npu_grouped_matmul"](Draw(seed))
    ((x,), (w,)), o = drawn.args, drawn.kwargs
    listed = o["group_list"]
    ends = (listed if o["group_list_type"] == 0 else listed.cumsum(0)).tolist()
    exact = each(w, ends, x)
    if "scale" in o:
        owner = [e for e, (a, b) in enumerate(pairwise([0, *ends])) for _ in range(b - a)]
        exact = exact * o["scale"][0].double()[owner] * o["per_token_scale"][0].double().unsqueeze(-1)
    (found,) = ops.npu_grouped_matmul(*drawn.args, **o)
    close(found, exact)


@pytest.mark.parametrize("groups", [1, 4])
def test_eight_by_four_bits_is_near_the_exact_product(groups: int) -> None:
    d = Draw(3)
    x, w = d.ints(-128, 128, 6, 64, dtype=torch.int8), d.ints(-8, 8, 2, 64, 16, dtype=torch.int32)
    scale, rows = d.positive(2, groups, 16) * 1e-3, d.positive(6) * 0.1
    scaled = w.double() * scale.double().repeat_interleave(64 // groups, 1)
    assist = 8 * scaled.sum(1).float()
    packed = ops.npu_convert_weight_to_int4pack(w)
    words = scale.view(torch.int32).long() if groups > 1 else scale.view(torch.int32).long().squeeze(1)
    (found,) = ops.npu_grouped_matmul(
        [x], [packed], bias=[assist], scale=[words], per_token_scale=[rows], group_list=torch.tensor([4, 6]),
        group_type=0, split_item=2, output_dtype=15,
    )  # fmt: skip
    exact = each(scaled, [4, 6], x) * rows.double().unsqueeze(-1)
    assert (found.double() - exact).norm() / exact.norm() < 6e-3


def test_products_of_8_bit_floats_are_exact_up_to_one_rounding() -> None:
    d = Draw(5)
    x, w = d.normal(9, 64), d.normal(2, 64, 16).to(torch.float8_e4m3fn)
    rows, per_row = ops.npu_dynamic_quant(x, dst_type=torch.float8_e4m3fn)
    assert (rows.dtype, per_row.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (rows.float().abs().amax(-1) == 448).all()
    back = rows.double() * per_row.double().unsqueeze(-1)
    assert ((back - x.double()).abs() <= x.double().abs() * 2**-4 + per_row.double().unsqueeze(-1) * 2**-10).all()
    scale = d.positive(2, 16)
    exact = each(w.double() * scale.double().unsqueeze(1), [4, 9], back)
    (found,) = ops.npu_grouped_matmul(
        [rows], [w], scale=[scale], per_token_scale=[per_row], group_list=torch.tensor([4, 9]), group_type=0,
        split_item=2, output_dtype=15,
    )  # fmt: skip
    close(found, exact)
    close(ops.npu_quant_matmul(rows, w[1], scale[1], pertoken_scale=per_row, output_dtype=15)[4:], exact[4:])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("version", ["", "_v2"])
def test_grouped_matmul_swiglu_quant_is_a_step_from_swiglu(seed: int, version: str) -> None:
    name = f"npu_grouped_matmul_swiglu_quant{version}"
    x, w, ends, scale, rows = ARGUMENTS["npu_grouped_matmul_swiglu_quant"](Draw(seed)).args
    drawn = ARGUMENTS[name](Draw(seed))
    q, found, *_ = getattr(ops, name)(*drawn.args, **drawn.kwargs)
    wide = each(w.double() * scale.double().unsqueeze(1), ends.tolist(), x) * rows.double().unsqueeze(-1)
    left, right = wide.chunk(2, -1)
    exact = silu(left) * right
    assert ((q.double() * found.double().unsqueeze(-1) - exact).abs() / found.double().unsqueeze(-1)).max() < 0.51
    assert (q.abs().amax(-1) == 127).all()


def plain(x: Tensor, layout: str, heads: int) -> Tensor:
    """[batch, heads, length, dim] in fp64."""
    if layout == "BNSD":
        return x.double()
    return (x.unflatten(-1, (heads, -1)) if layout in ("BSH", "SBH") else x).double().transpose(1, 2)


@pytest.mark.parametrize("seed", range(16))
def test_fused_infer_attention_is_attention(seed: int) -> None:
    drawn = ARGUMENTS["npu_fused_infer_attention_score"](Draw(seed))
    o = drawn.kwargs
    came, _, goes = o["input_layout"].partition("_")
    heads = o["num_heads"], o["num_key_value_heads"], o["num_key_value_heads"]
    q, k, v = (plain(x, came, n) for x, n in zip(drawn.args, heads, strict=True))
    seen = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if o["atten_mask"] is not None:
        seen = ~o["atten_mask"].expand_as(seen)
    for b, length in enumerate(o["actual_seq_lengths_kv"] or []):
        seen[b, ..., length:] = False
    exact = scaled_dot_product_attention(q, k, v, seen, scale=o["scale"], enable_gqa=True)
    out, lse = ops.npu_fused_infer_attention_score(*drawn.args, **o)
    torch.testing.assert_close(plain(out, goes or came, o["num_heads"]), exact, rtol=2e-2, atol=2e-2)
    if o["softmax_lse_flag"]:
        scores = (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)) * o["scale"]
        expected = scores.masked_fill(~seen, float("-inf")).logsumexp(-1, keepdim=True)
        torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("heads_first", [False, True])
def test_paged_attention_is_attention_over_the_pages(seed: int, heads_first: bool) -> None:
    from tests.offline_ascend.arguments_moe import fused_infer_paged

    drawn = fused_infer_paged(Draw(seed))
    (query, *caches), o = drawn.args, drawn.kwargs
    kv, size = o["num_key_value_heads"], o["block_size"]
    heads = [cache.unflatten(-1, (kv, -1)).transpose(1, 2) for cache in caches]
    given = [h.contiguous() for h in heads] if heads_first else caches
    out, _ = ops.npu_fused_infer_attention_score(query, *given, **o)
    ends = [0, *o["actual_seq_lengths"]]
    for b, length in enumerate(o["actual_seq_lengths_kv"]):
        rows = [(o["block_table"][b, at // size].item(), at % size) for at in range(length)]
        k, v = (torch.stack([h[block, :, at] for block, at in rows], 1).double() for h in heads)
        q = query[ends[b] : ends[b + 1]].double().transpose(0, 1)
        seen = torch.ones(q.shape[1], length, dtype=torch.bool).tril(length - q.shape[1])
        exact = scaled_dot_product_attention(q, k, v, seen, scale=o["scale"], enable_gqa=True)
        torch.testing.assert_close(out[ends[b] : ends[b + 1]].double().transpose(0, 1), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("name", ["npu_fusion_attention", "npu_fusion_attention_v3"])
def test_fusion_attention_is_attention(name: str, seed: int) -> None:
    drawn = ARGUMENTS[name](Draw(seed))
    *tensors, heads, layout = drawn.args
    mask, scale = drawn.kwargs["atten_mask"], drawn.kwargs["scale"]
    batch_first = [x.transpose(0, 1) for x in tensors] if layout == "SBH" else tensors
    kv = heads * tensors[1].shape[-1] // tensors[0].shape[-1]
    q, k, v = (plain(x, layout, n) for x, n in zip(batch_first, (heads, kv, kv), strict=True))
    exact = scaled_dot_product_attention(q, k, v, None if mask is None else ~mask, scale=scale, enable_gqa=True)
    out, maximum, total, *_ = getattr(ops, name)(*drawn.args, **drawn.kwargs)
    found = plain(out.transpose(0, 1) if layout == "SBH" else out, layout, heads)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scale
    scores = scores if mask is None else scores.masked_fill(mask, float("-inf"))
    for each_of in range(8):
        lse = (maximum[..., each_of] + total[..., each_of].log()).double()
        torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_causal_modes_take_one_triangle_for_all(mode: int) -> None:
    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 8, 16)
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    band: dict[str, Any] = {"pre_tockens": 3, "next_tockens": 1} if mode == 4 else {}
    out, *_ = ops.npu_fusion_attention(q, k, k, 2, "BNSD", atten_mask=triangle, sparse_mode=mode, scale=0.3, **band)
    distance = torch.arange(8) - torch.arange(5).unsqueeze(-1) - (0 if mode == 2 else 3)
    seen = (distance <= 1) & (distance >= -3) if mode == 4 else distance <= 0
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, k, seen, scale=0.3))
    with pytest.raises(ValueError, match="triangle above the diagonal"):
        ops.npu_fusion_attention(q, k, k, 2, "BNSD", atten_mask=~triangle, sparse_mode=mode)
    with pytest.raises(ValueError, match=r"takes atten_mask \[2048, 2048\]"):
        ops.npu_fusion_attention(q, k, k, 2, "BNSD", atten_mask=triangle[:5, :8], sparse_mode=mode)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    q, hidden = torch.randn(1, 2, 3, 16, dtype=BF16), torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    hidden[..., 1, :] = True
    out, _ = ops.npu_fused_infer_attention_score(q, q, q, num_heads=2, input_layout="BNSD", atten_mask=hidden)
    assert not out[0, :, 1].any()
    assert out[0, :, 0].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_caches_get_their_rows_and_keep_the_rest(seed: int) -> None:
    drawn = ARGUMENTS["npu_scatter_pa_kv_cache"](Draw(seed))
    key, value, *caches, slots = drawn.args
    expected = [cache.clone() for cache in caches]
    for rows, cache in zip((key, value), expected, strict=True):
        for row, slot in zip(rows, slots.tolist(), strict=True):
            if slot >= 0:
                cache[slot // cache.shape[1], slot % cache.shape[1]] = row
    functional = ops.npu_scatter_pa_kv_cache_functional(*drawn.args, **drawn.kwargs)
    ops.npu_scatter_pa_kv_cache(*drawn.args, **drawn.kwargs)
    for found, kept, wanted in zip(caches, functional, expected, strict=True):
        assert torch.equal(found, wanted)
        assert torch.equal(kept, wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_scatter_nd_update_is_index_put(seed: int) -> None:
    x, places, rows = ARGUMENTS["npu_scatter_nd_update_"](Draw(seed)).args
    expected = x.index_put(tuple(places.t()), rows)
    assert torch.equal(ops.npu_scatter_nd_update(x, places, rows), expected)
    assert torch.equal(ops.npu_scatter_nd_update_(x, places, rows), expected)
    assert torch.equal(x, expected)


def test_what_a_reference_does_not_take_is_refused_by_name() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(Unsupported, match="npu_moe_token_permute has no padded_mode=True"):
        ops.npu_moe_token_permute(x, torch.tensor([0, 1]), padded_mode=True)
    with pytest.raises(Unsupported, match="does not take tid2eid"):
        ops.npu_moe_gating_top_k(x, 2, tid2eid=torch.zeros(1, 2, dtype=torch.int32))


def test_fused_infer_attention_refuses_what_its_document_forbids() -> None:
    q = torch.randn(2, 4, 3, 16)
    given: dict[str, Any] = {"num_heads": 4, "input_layout": "BNSD"}
    attend = ops.npu_fused_infer_attention_score
    with pytest.raises(ValueError, match="one for all heads"):
        attend(q, q, q, atten_mask=torch.zeros(2, 4, 3, 3, dtype=torch.bool), **given)
    with pytest.raises(ValueError, match="sparse_mode 3 needs an atten_mask"):
        attend(q, q, q, sparse_mode=3, **given)
    with pytest.raises(ValueError, match="2 lengths for 3 sequences"):
        attend(*(torch.randn(3, 4, 3, 16),) * 3, actual_seq_lengths_kv=[1, 2], **given)
    with pytest.raises(ValueError, match="TND needs actual_seq_lengths"):
        attend(q[0], q[0], q[0], num_heads=4, input_layout="TND")
    pages = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="a paged cache is"):
        attend(q, q, q, block_table=pages, block_size=128, actual_seq_lengths_kv=[1, 1], **given)
    with pytest.raises(Unsupported, match="does not take query_rope"):
        attend(q, q, q, query_rope=q, **given)
