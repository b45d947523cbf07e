"""The rewrites that make two spellings of one value the same term, in the order in which they are tried.

Each rule preserves values, not memory layout: terms are only read, and what is not fused is put back
as it was captured. A rule sees canonical arguments and answers with a term, or None where it does not
apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from glmfuse.canonicalize.ranges import clamp_of_indices, fill_past_the_end
from glmfuse.canonicalize.term import GETITEM, Arg, Op, Term, shape_of, size_of

aten = torch.ops.aten


class Builder(Protocol):
    """Makes canonical terms: `build(op, args, val)` applies the rules and shares equal terms."""

    def __call__(self, op: Op, args: tuple[Arg, ...], val: Any) -> Term:
        """The canonical term of `op(*args)`, whose value is `val`."""

    def known(self, op: Op, args: tuple[Arg, ...]) -> Term | None:
        """The term of `op(*args)` where the graph has it already."""


Rule = Callable[[Builder, tuple[Any, ...], Any], Term | None]


def drop_copy(build: Builder, args: tuple[Any, ...], val: Any) -> Term | None:
    """clone(x), alias(x), detach(x) -> x"""
    return args[0]


def as_reshape(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """view(x, s), _unsafe_view(x, s), unsqueeze(x, d), squeeze(x) -> reshape(x, full shape of the result)"""
    return build(aten.reshape.default, (args[0], shape_of(val)), val)


def fold_reshape(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """reshape(x, shape of x) -> x; reshape(reshape(x, a), b) -> reshape(x, b)"""
    source, shape = args
    if shape_of(source.val) == shape:
        return source
    if source.op is aten.reshape.default:
        return build(aten.reshape.default, (source.args[0], shape), val)
    return None


def reshape_of_linear(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """reshape(linear(reshape(x, [T, H]), w, b), [*lead, O]) -> linear(x, w, b) for x [*lead, H]

    And -> linear(y, w, b) for a y [*lead, H] of the graph that is reshape(x, [*lead, H]), such as the heads of
    an attention side by side.
    """
    source, shape = args
    if source.op is not aten.linear.default or shape[-1:] != shape_of(source.val)[-1:]:
        return None
    rows, weight, bias = source.args
    inner = rows.args[0] if rows.op is aten.reshape.default else rows
    wide = (*shape[:-1], *shape_of(rows.val)[-1:])
    found = inner if shape_of(inner.val) == wide else build.known(aten.reshape.default, (inner, wide))
    return None if found is None else build(aten.linear.default, (found, weight, bias), val)


def as_permute(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """t(x), transpose(x, a, b) -> permute(x, dims)"""
    source, *dims = args
    order = list(range(val.dim()))
    first, second = dims if dims else (0, val.dim() - 1)
    if order:
        order[first], order[second] = order[second], order[first]
    return build(aten.permute.default, (source, tuple(order)), val)


def fold_permute(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """permute(x, identity) -> x; permute(permute(x, a), b) -> permute(x, a then b)"""
    source, dims = args
    if dims == tuple(range(len(dims))):
        return source
    if source.op is aten.permute.default:
        before = source.args[1]
        return build(aten.permute.default, (source.args[0], tuple(before[dim] for dim in dims)), val)
    return None


def full_expand(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """expand(x, [-1, n]) -> expand(x, full shape of the result); expand(x, shape of x) -> x"""
    source, shape, *rest = args
    full = shape_of(val)
    if shape_of(source.val) == full:
        return source
    return None if shape == full else build(aten.expand.default, (source, full, *rest), val)


def fold_slice(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """slice(x, d, 0, everything) -> x; the end is never past the size; a slice of a slice is one slice"""
    source, dim, start, end, step = args
    size = size_of(source.val.shape[dim])
    if not all(isinstance(item, int) for item in (start or 0, step)):
        return None
    if step == 1 and (start or 0) == 0 and (end == size or _is_past(end, size)):
        return source
    if not isinstance(size, int) or not isinstance(end, int | None):
        return None
    first, last = slice(start, end).indices(size)[:2]
    last = max(first, last)
    if source.op is aten.slice.Tensor and source.args[1] == dim and source.args[4] == 1:
        inner, offset = source.args[0], source.args[2]
        if isinstance(offset, int):
            return build(aten.slice.Tensor, (inner, dim, first + offset, last + offset, step), val)
    if (first, last) != (start, end):
        return build(aten.slice.Tensor, (source, dim, first, last, step), val)
    return None


def _is_past(end: Any, size: Any) -> bool:
    return end is None or (isinstance(end, int) and (end >= 2**63 - 1 or (isinstance(size, int) and end >= size)))


def split_as_slices(build: Builder, args: tuple[Any, ...], val: Any) -> Term | None:
    """getitem(split(x, n, d), i), getitem(split_with_sizes(x, s, d), i) -> slice(x, d, start, end)"""
    source, index = args
    if source.op not in (aten.split.Tensor, aten.split_with_sizes.default):
        return None
    tensor, sizes, dim = source.args
    total = size_of(tensor.val.shape[dim])
    if isinstance(sizes, int) and isinstance(total, int):
        start, end = index * sizes, min((index + 1) * sizes, total)
    elif isinstance(sizes, tuple) and all(isinstance(size, int) for size in sizes):
        start, end = sum(sizes[:index]), sum(sizes[: index + 1])
    else:
        return None
    return build(aten.slice.Tensor, (tensor, dim, start, end, 1), val)


def fold_cat(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """cat([x, empty], d) -> cat([x], d); cat([x], d) -> x"""
    parts, dim = args
    filled = tuple(part for part in parts if not (part.val.dtype == val.dtype and 0 in shape_of(part.val)))
    if len(filled) == 1 and filled[0].val.dtype == val.dtype:
        return filled[0]
    return build(aten.cat.default, (filled, dim), val) if 0 < len(filled) < len(parts) else None


def plain_cast(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """_to_copy(x, dtype, same device and layout) -> _to_copy(x, dtype); to its own dtype -> x"""
    source, _, layout, device, *rest = args
    if (layout not in (None, source.val.layout)) or (device is not None and source.val.device != val.device):
        return None
    if val.dtype == source.val.dtype:
        return source
    full = (source, val.dtype, None, None, *(None for _ in rest))
    return None if args == full else build(aten._to_copy.default, full, val)


def convert_as_cast(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """prims.convert_element_type(x, dtype), npu._npu_dtype_cast(x, dtype) -> _to_copy(x, dtype)"""
    return build(aten._to_copy.default, (args[0], val.dtype, None, None, None, None, None), val)


_EXACT = frozenset(
    {
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.float16, torch.float64),
        (torch.float32, torch.float64),
    }
)
"""Pairs of dtypes of which the second holds every value of the first."""


def cast_there_and_back(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """_to_copy(_to_copy(x, wider), dtype of x) -> x: every 16-bit float is a float32, and that a float64"""
    source = args[0]
    if source.op is not aten._to_copy.default:
        return None
    inner = source.args[0].val
    is_back = inner.dtype == val.dtype and inner.device == val.device
    return source.args[0] if is_back and (val.dtype, source.val.dtype) in _EXACT else None


def mm_as_linear(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """mm(x, permute(w, [1, 0])) -> linear(x, w)"""
    rows, weight = args
    if weight.op is aten.permute.default:
        return build(aten.linear.default, (rows, weight.args[0], None), val)
    return None


def addmm_as_linear(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """addmm(b, x, permute(w, [1, 0])) -> linear(x, w, b) for a 1-D b; mm + add rounds twice and stays"""
    bias, rows, weight, beta, alpha = args
    if weight.op is aten.permute.default and bias.val.dim() == 1 and beta == 1 and alpha == 1:
        return build(aten.linear.default, (rows, weight.args[0], bias), val)
    return None


def matmul_as_linear(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """matmul(x, permute(w, [1, 0])) -> linear(x, w) for a 2-D w; an NPU's trace keeps matmul"""
    rows, weight = args
    if weight.op is aten.permute.default and weight.val.dim() == 2 and rows.val.dim() > 1:
        return build(aten.linear.default, (rows, weight.args[0], None), val)
    return None


def dtype_of_number(build: Builder, args: tuple[Any, ...], val: torch.Tensor) -> Term | None:
    """npu.npu_quant_matmul(..., output_dtype=15) -> the same with torch.bfloat16; the dispatcher knows numbers alone"""
    full = _with_dtype(args, _OUTPUT_DTYPE, val)
    return build(torch.ops.npu.npu_quant_matmul.default, full, val) if full else None


def dtype_of_groups_number(build: Builder, args: tuple[Any, ...], val: list[torch.Tensor]) -> Term | None:
    """npu.npu_grouped_matmul(..., output_dtype=15) -> the same with torch.bfloat16"""
    full = _with_dtype(args, _OUTPUT_DTYPE_OF_GROUPS, val[0])
    return build(torch.ops.npu.npu_grouped_matmul.default, full, val) if full else None


_OUTPUT_DTYPE = 6
_OUTPUT_DTYPE_OF_GROUPS = 17
"""Where the operators have their output's dtype, as a number."""


def _with_dtype(args: tuple[Any, ...], place: int, result: torch.Tensor) -> tuple[Any, ...] | None:
    return (*args[:place], result.dtype, *args[place + 1 :]) if isinstance(args[place], int) else None


RULES: Mapping[Op, tuple[Rule, ...]] = {
    aten.clone.default: (drop_copy,),
    aten.alias.default: (drop_copy,),
    aten.detach.default: (drop_copy,),
    aten.contiguous.default: (drop_copy,),
    aten.view.default: (as_reshape,),
    aten._unsafe_view.default: (as_reshape,),
    aten.unsqueeze.default: (as_reshape,),
    aten.squeeze.default: (as_reshape,),
    aten.squeeze.dim: (as_reshape,),
    aten.squeeze.dims: (as_reshape,),
    aten.reshape.default: (fold_reshape, reshape_of_linear),
    aten.t.default: (as_permute,),
    aten.transpose.int: (as_permute,),
    aten.permute.default: (fold_permute,),
    aten.expand.default: (full_expand,),
    aten.slice.Tensor: (fold_slice,),
    GETITEM: (split_as_slices,),
    aten.cat.default: (fold_cat,),
    aten._to_copy.default: (plain_cast, cast_there_and_back),
    torch.ops.prims.convert_element_type.default: (convert_as_cast,),
    aten.mm.default: (mm_as_linear,),
    aten.addmm.default: (addmm_as_linear,),
    aten.matmul.default: (matmul_as_linear,),
    aten.clamp.default: (clamp_of_indices,),
    aten.masked_fill.Scalar: (fill_past_the_end,),
}

RULES_BY_NAME: Mapping[str, tuple[Rule, ...]] = {
    "npu::_npu_dtype_cast": (convert_as_cast,),
    "npu::npu_quant_matmul": (dtype_of_number,),
    "npu::npu_grouped_matmul": (dtype_of_groups_number,),
}
"""Of operators that are there only where a device's library is loaded."""


def rules_for(op: Op) -> tuple[Rule, ...]:
    """The rules to try on calls of an operator."""
    return RULES.get(op) or RULES_BY_NAME.get(getattr(op, "_name", ""), ())
