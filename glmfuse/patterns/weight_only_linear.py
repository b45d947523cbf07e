"""A linear layer whose weights alone are quantised: int8 or packed int4, widened before a floating product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from glmfuse.matching.pattern import Pattern, require
from glmfuse.matching.register import pattern, spelling_of
from glmfuse.patterns.int4 import unpack_words
from glmfuse.patterns.quant_linear import as_long
from glmfuse.patterns.quantize import FLOATS, HALVES

_CASES: tuple[dict[str, int], ...] = ({}, {"G": 1})
"""One row of scales is one for each output, and nothing is divided into groups."""

_INT8 = {"x": "T G*M", "w": "G*M P", "scale": "G P", "offset": "G P", "bias": "P"}
_INT4 = {"x": "T G*M", "w": "G*M P", "scale": "G 8*P", "offset": "G 8*P", "bias": "8*P"}


def groups_of(scale: Tensor) -> int:
    """How many groups of inputs have scales of their own.  [out] or [1, out] -> 1, [groups, out] -> groups."""
    return 1 if scale.dim() == 1 else int(scale.shape[0])


Numbers = tuple[Tensor, Tensor, Tensor | None]
"""Integers, scale and offset, in fp32."""


def _in_fp32(values: Tensor, scale: Tensor, offset: Tensor | None) -> Numbers:
    wide = None if offset is None else offset.to(torch.float32)
    return values.to(torch.float32), scale.to(torch.float32), wide


def _widened(values: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """(values + offset) * scale, which lie alike or are spread."""
    return (values if offset is None else values + offset) * scale


def _in_groups(values: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """The same of each group of inputs by itself.  values [in, out] -> alike."""
    groups = groups_of(scale)
    apart = None if offset is None else offset.view(groups, 1, -1)
    return _widened(values.unflatten(0, (groups, -1)), scale.view(groups, 1, -1), apart).flatten(0, 1)


def _weight(w: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int8 weights widened in fp32, and rounded once, to dtype."""
    widened = _widened if groups_of(scale) == 1 else _in_groups
    return widened(*_in_fp32(w, scale, offset)).to(dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.mm(x.to(torch.float32), weight.to(torch.float32))
    return (y if bias is None else y + bias.to(torch.float32)).to(x.dtype)


def _in_halves(x: Tensor) -> None:
    require(x.dtype in HALVES, "x must be bf16 or fp16", x.dtype)


@pattern(dims=_INT8, cases=_CASES, dtypes={"w": torch.int8}, holds=(torch.int8,))
def weight_only_linear(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None) -> Tensor:
    """X weight + bias, rounded once; the weight is (w + offset) * scale, rounded to x's dtype.

    x [tokens, in] bf16 or fp16, w [in, out] int8, scale [out], or [groups, out] for each in / groups inputs, or one
    number, offset like scale, both floating, bias [out] floating -> [tokens, out] of x's dtype. Sum, weight and
    product are fp32, each rounded; the weight is rounded once more, to x's dtype, before it is multiplied. w lies
    as the operator reads it, as `quant_linear` has it. Source: npu_weight_quant_batchmatmul of torch_npu, op-plugin
    517f2e7.
    """
    _in_halves(x)
    return _product(x, _weight(w, scale, offset, x.dtype), bias)


@pattern(dims=_INT4, dtypes={"w": torch.int32}, holds=(torch.int32,))
def w4_weight_only_linear(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight_only_linear` of int4, eight to a word.

    x [tokens, in] bf16 or fp16, w [in, out / 8] int32 as `unpack_words` reads it, scale, offset and bias as there ->
    [tokens, out] of x's dtype. Source: npu_weight_quant_batchmatmul of torch_npu, op-plugin 517f2e7, by which
    vllm-ascend 45f53ff760 has linear layers of W4A8_DYNAMIC in groups.
    """
    _in_halves(x)
    return _product(x, _in_groups(*_in_fp32(unpack_words(w), scale, offset)).to(x.dtype), bias)


@spelling_of(weight_only_linear)
def widened_in_fp32(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None) -> Tensor:
    """By a product in x's dtype, which sums in fp32 and rounds once."""
    _in_halves(x)
    return F.linear(x, _weight(w, scale, offset, x.dtype).t(), bias)


@spelling_of(weight_only_linear)
def widened_in_half(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None) -> Tensor:
    """The weight made in x's dtype too, which holds every int8; not every sum of one and an offset.

    Groups would make of it little more than shapes around a product, which half of any graph resembles.
    """
    _in_halves(x)
    require(offset is None and groups_of(scale) == 1, "no offset, and no groups")
    return F.linear(x, (w.to(x.dtype) * scale).t(), bias)


def _constrain(made: Pattern, stored: torch.dtype, in_each: int) -> None:
    """What sites have to be; in_each: how many outputs lie in an element of w."""
    made.constraint(_in_halves)

    @made.constraint
    def _(x: Tensor, w: Tensor, bias: Tensor | None) -> None:
        require(w.dtype == stored, f"w must be {stored}", w.dtype)
        require(x.dim() == 2 and w.dim() == 2, "x and w must be matrices", f"{x.dim()} and {w.dim()} dimensions")
        require(in_each == 1 or w.is_contiguous(), "words of w must hold neighbours among outputs", w.stride())
        require(statically_known_true(w.shape[0] == x.shape[1]), f"w must have {x.shape[1]} inputs", w.shape[0])
        if bias is not None:
            require(bias.dtype in FLOATS, "bias must be bf16, fp16 or fp32", bias.dtype)
            require(bias.dim() == 1, "bias must be one row", f"{bias.dim()} dimensions")
            as_long(in_each * w.shape[1], bias=bias)

    @made.constraint
    def _(w: Tensor, scale: Tensor, offset: Tensor | None) -> None:
        for name, given in (("scale", scale), ("offset", offset)):
            if given is not None:
                require(given.dtype in FLOATS, f"{name} must be bf16, fp16 or fp32", given.dtype)
                require(_lies_by_groups(given, w, in_each), f"{name} must be of outputs, or of groups", given.shape)
                require(given.shape == scale.shape, f"{name} must be like scale", given.shape)


def _lies_by_groups(scale: Tensor, w: Tensor, in_each: int) -> bool:
    """One number, or one for each output, or these for each of several whole groups of inputs."""
    if scale.dim() not in (1, 2):
        return False
    groups, outputs = groups_of(scale), in_each * w.shape[1]
    if groups == 1 and statically_known_true(scale.shape[-1] == 1):
        return True
    return statically_known_true(scale.shape[-1] == outputs) and statically_known_true(w.shape[0] % groups == 0)


_constrain(weight_only_linear, torch.int8, 1)
_constrain(w4_weight_only_linear, torch.int32, 8)
