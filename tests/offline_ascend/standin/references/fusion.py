"""npu_fusion_attention, which torch_npu makes of scaled_dot_product_attention: forward, without dropout.

Source: the operator's document in torch_npu 2.13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.attention import EVERYTHING, Mask, attend, layout_of
from tests.offline_ascend.standin.references.reference import Reference, absent, only

NAME = "npu_fusion_attention"
REPEATS = 8  # each maximum and each sum fills 32 bytes
Forward = tuple[Tensor, Tensor, Tensor, Tensor]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = EVERYTHING,
    next_tockens: int = EVERYTHING,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: Any = None,
    actual_seq_kvlen: Any = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    **others: Any,
) -> Forward:
    """out in the query's layout; maxima and sums [batch, heads, queries, 8] fp32, eight times each; an empty fourth.

    atten_mask is True where a key is hidden, and may differ between heads. Without one, sparse_mode says nothing.
    """
    absent(NAME, pse=pse, padding_mask=padding_mask, prefix=prefix, sink=sink)
    absent(NAME, actual_seq_qlen=actual_seq_qlen, actual_seq_kvlen=actual_seq_kvlen)
    only(NAME, keep_prob=(keep_prob, 1.0), softmax_layout=(softmax_layout, ""))
    layout = layout_of(input_layout)
    queries = layout.split(query, head_num)
    kv_heads = head_num if query.dim() == 4 else key.shape[-1] // queries.shape[-1]
    keys, values = layout.split(key, kv_heads), layout.split(value, kv_heads)
    mask = Mask(atten_mask, sparse_mode, pre_tockens, next_tockens)
    done = [
        attend(q, k, v, scale, mask.of(b, q.shape[1], k.shape[1]))
        for b, (q, k, v) in enumerate(zip(queries, keys, values, strict=True))
    ]
    out = layout.join(torch.stack([one.out for one in done])).clone(memory_format=torch.contiguous_format)
    maximum, total = (torch.stack(each) for each in zip(*((one.maximum, one.total) for one in done), strict=True))
    return out, _repeated(maximum), _repeated(total), torch.empty(0, dtype=query.dtype)


def _repeated(values: Tensor) -> Tensor:
    return values.expand(*values.shape[:-1], REPEATS).contiguous()


def fusion_attention(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """With the seed, the offset and the count of a dropout that there is not."""
    return (*forward(*args, **kwargs), 0, 0, 0)


def fusion_attention_v3(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """With seed and offset as tensors, for capture."""
    return (*forward(*args, **kwargs), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))


OPS = {NAME: Reference(fusion_attention), f"{NAME}_v3": Reference(fusion_attention_v3)}
