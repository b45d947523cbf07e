"""Random arguments for every operator that has a reference: each draw has other sizes, and other options."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
QINT8 = 12  # torch_npu's number of the dtype


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


class Draw:
    """Numbers of one draw; the same seed gives the same."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def size(self, low: int, high: int, by: int = 1) -> int:
        return by * self.random.randint(low, high)

    def normal(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def positive(self, *shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return (torch.rand(shape, generator=self.generator) + 0.5).to(dtype)

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)

    def distinct(self, number: int, among: int, dtype: torch.dtype) -> Tensor:
        return torch.randperm(among, generator=self.generator)[:number].to(dtype)

    def split(self, total: int, parts: int) -> list[int]:
        """How many of `total` each part gets; some get none."""
        owner = self.ints(0, parts, total)
        return torch.bincount(owner, minlength=parts).tolist()

    def hidden(self, *shape: int) -> Tensor:
        """A mask that leaves every query a key."""
        mask = torch.rand(shape, generator=self.generator) < 0.4
        mask[..., 0] = False
        return mask


def _normed(d: Draw) -> tuple[tuple[int, ...], torch.dtype]:
    return (*(d.size(1, 5) for _ in range(d.size(1, 3))), d.size(1, 9, by=16)), d.pick(BF16, FP16, FP32)


def rms_norm(d: Draw) -> Call:
    shape, dtype = _normed(d)
    return call(d.normal(*shape, dtype=dtype), d.normal(shape[-1], dtype=dtype), d.pick(1e-5, 1e-6))


def add_rms_norm(d: Draw) -> Call:
    shape, dtype = _normed(d)
    x1, x2 = d.normal(*shape, dtype=dtype), d.normal(*shape, dtype=dtype)
    return call(x1, x2, d.normal(shape[-1], dtype=dtype), d.pick(1e-5, 1e-6))


def add_rms_norm_16(d: Draw) -> Call:
    shape, dtype = (d.size(1, 9), d.size(1, 9, by=32)), d.pick(BF16, FP16)
    x1, x2 = d.normal(*shape, dtype=dtype), d.normal(*shape, dtype=dtype)
    return call(x1, x2, d.normal(shape[-1], dtype=dtype))


def add_rms_norm_quant(d: Draw) -> Call:
    one = add_rms_norm_16(d)
    hidden, dtype = one.args[0].shape[-1], one.args[0].dtype
    scales, zeros = d.positive(hidden, dtype=dtype) * 0.05, d.ints(-9, 9, hidden).to(dtype)
    beta = d.pick(None, d.normal(hidden, dtype=dtype))
    return call(*one.args, scales, d.pick(None, zeros), beta, div_mode=d.pick(True, False))


def add_rms_norm_dynamic_quant(d: Draw) -> Call:
    one = add_rms_norm_16(d)
    hidden, dtype = one.args[0].shape[-1], one.args[0].dtype
    smooth = [d.positive(hidden, dtype=dtype) for _ in range(2)]
    first, second = d.pick((None, None), (smooth[0], None), (smooth[0], smooth[1]))
    mask = [True, second is not None]
    return call(*one.args, smooth_scale1=first, smooth_scale2=second, output_mask=mask)


def quantize(d: Draw) -> Call:
    x = d.normal(d.size(1, 9), d.size(1, 9, by=32), dtype=d.pick(BF16, FP16))
    scales, zeros = d.positive(x.shape[-1], dtype=x.dtype), d.ints(-9, 9, x.shape[-1]).to(x.dtype)
    return call(x, scales, d.pick(None, zeros), QINT8, -1, False)


def dynamic_quant(d: Draw) -> Call:
    x = d.normal(*_normed(d)[0])
    return call(x, smooth_scales=d.pick(None, d.positive(x.shape[-1], dtype=BF16)))


def quant_matmul(d: Draw) -> Call:
    m, k, n = d.size(1, 9), d.size(1, 6, by=32), d.size(1, 6, by=32)
    x, w = d.ints(-128, 128, m, k, dtype=INT8), d.ints(-128, 128, k, n, dtype=INT8)
    bias = d.pick(None, d.ints(-999, 999, n, dtype=torch.int32))
    rows = d.pick(None, d.positive(m) * 0.01)
    return call(x, w, d.positive(n) * 0.01, pertoken_scale=rows, bias=bias, output_dtype=15)


def trans_quant_param(d: Draw) -> Call:
    return call(d.positive(d.size(1, 99, by=16)))


def weight_quant_batchmatmul(d: Draw) -> Call:
    m, k, n = d.size(1, 9), d.size(1, 4, by=64), d.size(1, 6, by=32)
    group = d.pick(0, 32)
    scale = d.positive(*((k // group, n) if group else (n,)), dtype=BF16) * 0.01
    weight = d.ints(-128, 128, k, n, dtype=INT8)
    offset = d.pick(None, d.ints(-9, 9, *scale.shape).to(BF16))
    return call(d.normal(m, k), weight, scale, offset, antiquant_group_size=group)


def int4_weight(d: Draw) -> Call:
    return call(d.ints(-8, 8, d.size(1, 9), d.size(1, 9, by=8), dtype=torch.int32))


def linear(d: Draw) -> Call:
    rows, inputs, outputs = d.size(1, 20), d.size(1, 40), d.size(1, 30)
    bias = d.pick(None, d.normal(outputs))
    return call(d.normal(rows, inputs), d.normal(outputs, inputs), bias)


def swiglu(d: Draw) -> Call:
    shape, dtype = _normed(d)
    return call(d.normal(*shape[:-1], 2 * shape[-1], dtype=dtype), d.pick(-1, len(shape) - 1))


def dequant_swiglu_quant(d: Draw) -> Call:
    m, n, groups = d.size(1, 9), d.size(1, 4, by=64), d.size(1, 4)
    x = d.ints(-99999, 99999, m, 2 * n, dtype=torch.int32)
    return call(
        x,
        weight_scale=d.positive(groups, 2 * n) * 1e-5,
        activation_scale=d.positive(m),
        quant_scale=d.pick(None, d.positive(groups, n)),
        group_index=torch.tensor(d.split(m, groups)),
        activate_left=d.pick(True, False),
        quant_mode=1,
    )


def rotary_mul(d: Draw) -> Call:
    b, s, heads, width = d.size(1, 3), d.size(1, 7), d.size(1, 5), d.size(1, 4, by=32)
    dtype = d.pick(BF16, FP16, FP32)
    shared = d.pick(1, b)
    cos, sin = d.normal(shared, s, 1, width, dtype=dtype), d.normal(shared, s, 1, width, dtype=dtype)
    return call(d.normal(b, s, heads, width, dtype=dtype), cos, sin, d.pick("half", "interleave"))


def apply_rotary_pos_emb(d: Draw) -> Call:
    b, s, width = d.size(1, 3), d.size(1, 7), 128
    cos, sin = d.normal(b, s, 1, width), d.normal(b, s, 1, width)
    return call(d.normal(b, s, d.size(1, 5), width), d.normal(b, s, d.size(1, 3), width), cos, sin)


def mrope(d: Draw) -> Call:
    tokens, head, width, places = d.size(1, 9), 128, d.pick(64, 128), 50
    cache = d.normal(places, width)
    query, key = d.normal(tokens, d.size(1, 5) * head), d.normal(tokens, d.size(1, 3) * head)
    return call(d.ints(0, places, tokens), query, key, cache, head, rotary_mode=d.pick("half", "interleave"))


def cast(d: Draw) -> Call:
    shape, dtype = _normed(d)
    return call(d.normal(*shape, dtype=dtype), d.pick(BF16, FP16, FP32))


ARGUMENTS: dict[str, Callable[[Draw], Call]] = {
    "_npu_dtype_cast": cast,
    "npu_dtype_cast": cast,
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_add_rms_norm_v2": add_rms_norm,
    "npu_add_rms_norm_cast": add_rms_norm_16,
    "npu_add_rms_norm_quant": add_rms_norm_quant,
    "npu_add_rms_norm_dynamic_quant": add_rms_norm_dynamic_quant,
    "npu_quantize": quantize,
    "npu_dynamic_quant": dynamic_quant,
    "npu_quant_matmul": quant_matmul,
    "npu_trans_quant_param": trans_quant_param,
    "npu_weight_quant_batchmatmul": weight_quant_batchmatmul,
    "npu_convert_weight_to_int4pack": int4_weight,
    "npu_linear": linear,
    "npu_swiglu": swiglu,
    "npu_dequant_swiglu_quant": dequant_swiglu_quant,
    "npu_rotary_mul": rotary_mul,
    "npu_apply_rotary_pos_emb": apply_rotary_pos_emb,
    "npu_mrope": mrope,
}
