"""Random arguments for the operators of experts, attention and caches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.offline_ascend.arguments import BF16, FP16, FP32, INT8, Call, Draw, call

INT32 = torch.int32


def gating(d: Draw) -> Call:
    groups = d.pick(1, 2, 4)
    experts, dtype = groups * d.size(1, 4, by=4), d.pick(BF16, FP16, FP32)
    kept = d.size(1, groups)
    k = d.size(1, min(6, kept * experts // groups))
    return call(
        d.normal(d.size(1, 9), experts, dtype=dtype),
        k,
        bias=d.pick(None, d.normal(experts, dtype=dtype)),
        k_group=kept,
        group_count=groups,
        group_select_mode=d.pick(0, 1),
        norm_type=d.pick(0, 1),
        routed_scaling_factor=d.pick(1.0, 2.5),
    )


def init_routing(d: Draw) -> Call:
    tokens, k, experts = d.size(1, 9), d.size(1, 4), d.size(1, 4, by=4)
    low = d.pick(0, experts // 2)
    quantised = d.pick(True, False)
    return call(
        d.normal(tokens, d.size(1, 4, by=32)),
        d.ints(0, experts, tokens, k, dtype=INT32),
        active_num=tokens * k,
        expert_num=experts,
        expert_tokens_num_type=d.pick(0, 1),
        expert_tokens_num_flag=True,
        quant_mode=1 if quantised else -1,
        active_expert_range=[low, experts],
        row_idx_type=d.pick(0, 1),
    )


def permute(d: Draw) -> Call:
    tokens, k, experts = d.size(1, 9), d.size(1, 4), d.size(1, 4, by=4)
    return call(d.normal(tokens, d.size(1, 4, by=32)), d.ints(0, experts, tokens, k, dtype=INT32))


def unpermute(d: Draw) -> Call:
    tokens, k = d.size(1, 9), d.size(1, 4)
    rows = d.normal(tokens * k, d.size(1, 4, by=32))
    return call(rows, d.distinct(tokens * k, tokens * k, INT32), d.positive(tokens, k, dtype=BF16))


def finalize(d: Draw) -> Call:
    tokens, k, experts, hidden = d.size(1, 9), d.size(1, 4), d.size(1, 8), d.size(1, 4, by=32)
    dtype = d.pick(BF16, FP32)
    skip, bias = d.normal(tokens, hidden, dtype=dtype), d.normal(experts, hidden, dtype=dtype)
    owner = d.ints(0, experts, tokens, k, dtype=INT32)
    rows, scales = d.normal(tokens * k, hidden, dtype=dtype), d.positive(tokens, k, dtype=dtype)
    return call(
        rows, d.pick(None, skip), None, d.pick(None, bias), scales, d.distinct(tokens * k, tokens * k, INT32), owner,
        drop_pad_mode=d.pick(0, 2),
    )  # fmt: skip


def grouped_matmul(d: Draw) -> Call:
    rows, experts, k, n = d.size(1, 20), d.size(1, 5), d.size(1, 3, by=32), d.size(1, 3, by=32)
    counts = torch.tensor(d.split(rows, experts))
    kind = d.pick(0, 1)
    groups = {"group_list": counts.cumsum(0) if kind == 0 else counts, "group_list_type": kind}
    common = {"split_item": 2, "group_type": 0, **groups}
    if d.pick(True, False):
        return call([d.normal(rows, k)], [d.normal(experts, k, n)], **common)
    x, w = d.ints(-128, 128, rows, k, dtype=INT8), d.ints(-128, 128, experts, k, n, dtype=INT8)
    scale, row = d.positive(experts, n, dtype=BF16) * 0.01, d.positive(rows) * 0.01
    return call([x], [w], scale=[scale], per_token_scale=[row], output_dtype=15, **common)


def grouped_swiglu(d: Draw) -> Call:
    rows, experts, k, n = d.size(1, 20), d.size(1, 5), d.size(1, 3, by=32), d.size(1, 3, by=64)
    ends = torch.tensor(d.split(rows, experts)).cumsum(0)
    x, w = d.ints(-128, 128, rows, k, dtype=INT8), d.ints(-128, 128, experts, k, n, dtype=INT8)
    return call(x, w, ends, d.positive(experts, n) * 0.01, d.positive(rows) * 0.01)


def grouped_swiglu_v2(d: Draw) -> Call:
    x, weight, ends, scale, rows = grouped_swiglu(d).args
    return call(x, [weight], [scale], rows, ends, group_list_type=0)


def scatter_cache(d: Draw) -> Call:
    tokens, blocks, size, heads, dim = d.size(1, 9), d.size(2, 4), 16, d.size(1, 3), d.size(1, 3, by=16)
    caches = d.normal(blocks, size, heads, dim), d.normal(blocks, size, heads, dim)
    slots = d.distinct(tokens, blocks * size, INT32)
    slots[0] = d.pick(-1, slots[0].item())
    rows = d.normal(tokens, heads, dim), d.normal(tokens, heads, dim)
    return call(*rows, *caches, slots, cache_mode="Norm")


def scatter_nd(d: Draw) -> Call:
    first, second, width = d.size(3, 9), d.size(1, 4), d.size(1, 3, by=16)
    number = d.size(1, first)
    rows = d.distinct(number, first, torch.int64).unsqueeze(-1)
    if d.pick(True, False):
        return call(d.normal(first, second, width), rows, d.normal(number, second, width))
    places = torch.cat((rows, d.ints(0, second, number, 1)), -1)
    return call(d.normal(first, second, width), places, d.normal(number, width))


def _heads(d: Draw) -> tuple[int, int, int]:
    kv = d.size(1, 3)
    return kv * d.size(1, 3), kv, d.size(1, 4, by=16)


def fused_infer(d: Draw) -> Call:
    (heads, kv, dim), layout = _heads(d), d.pick("BNSD", "BSND", "BSH", "BNSD_BSND")
    batch, q, k = d.size(1, 3), d.size(1, 7), d.size(7, 20)
    came = layout.split("_")[0]
    shape = {"BNSD": (1, 2, 3), "BSND": (2, 1, 3), "BSH": (2, 1, 3)}[came]

    def tensor(number: int, length: int) -> torch.Tensor:
        x = d.normal(*(batch if at == 0 else (0, number, length, dim)[at] for at in (0, *shape)))
        return x.flatten(2) if came == "BSH" else x

    mask = d.pick(None, d.hidden(d.pick(1, batch), 1, q, k))
    return call(
        tensor(heads, q), tensor(kv, k), tensor(kv, k), num_heads=heads, num_key_value_heads=kv, scale=dim**-0.5,
        input_layout=layout, atten_mask=mask, softmax_lse_flag=d.pick(True, False),
        actual_seq_lengths_kv=d.pick(None, [d.size(1, k) for _ in range(batch)]) if mask is None else None,
    )  # fmt: skip


def fused_infer_paged(d: Draw) -> Call:
    (heads, kv, dim), batch, size = _heads(d), d.size(1, 4), 16
    queries, keys = [d.size(1, 5) for _ in range(batch)], [d.size(5, 40) for _ in range(batch)]
    each = -(-max(keys) // size)
    cache = d.normal(batch * each, size, kv * dim), d.normal(batch * each, size, kv * dim)
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    ends = torch.tensor(queries).cumsum(0).tolist()
    return call(
        d.normal(sum(queries), heads, dim), *cache, num_heads=heads, num_key_value_heads=kv, scale=dim**-0.5,
        input_layout="TND", atten_mask=triangle, sparse_mode=3, block_size=size, actual_seq_lengths=ends,
        actual_seq_lengths_kv=keys, block_table=d.distinct(batch * each, batch * each, INT32).view(batch, each),
        softmax_lse_flag=True,
    )  # fmt: skip


def fusion_attention(d: Draw) -> Call:
    (heads, kv, dim), layout = _heads(d), d.pick("BNSD", "BSND", "BSH", "SBH")
    batch, q, k = d.size(1, 3), d.size(1, 7), d.size(7, 20)
    axes = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3), "BSH": (0, 2, 1, 3), "SBH": (2, 0, 1, 3)}[layout]

    def tensor(number: int, length: int) -> torch.Tensor:
        sizes = (batch, number, length, dim)
        x = d.normal(*(sizes[at] for at in axes), dtype=d_type)
        return x.flatten(2) if len(layout) == 3 else x

    d_type = d.pick(BF16, FP16, FP32)
    mask = d.pick(None, d.hidden(batch, d.pick(1, heads), q, k))
    tensors = tensor(heads, q), tensor(kv, k), tensor(kv, k)
    return call(*tensors, heads, layout, atten_mask=mask, scale=dim**-0.5)


ARGUMENTS: dict[str, Callable[[Draw], Call]] = {
    "npu_moe_gating_top_k": gating,
    "npu_moe_init_routing_v2": init_routing,
    "npu_moe_token_permute": permute,
    "npu_moe_token_unpermute": unpermute,
    "_npu_moe_token_unpermute": unpermute,
    "npu_moe_finalize_routing": finalize,
    "npu_grouped_matmul": grouped_matmul,
    "npu_grouped_matmul_swiglu_quant": grouped_swiglu,
    "npu_grouped_matmul_swiglu_quant_v2": grouped_swiglu_v2,
    "npu_scatter_pa_kv_cache": scatter_cache,
    "npu_scatter_pa_kv_cache_functional": scatter_cache,
    "npu_scatter_nd_update_": scatter_nd,
    "npu_scatter_nd_update": scatter_nd,
    "npu_fused_infer_attention_score": fused_infer,
    "npu_fusion_attention": fusion_attention,
    "npu_fusion_attention_v3": fusion_attention,
}
