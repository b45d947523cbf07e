"""Arguments in full: every call is compared by its whole schema, keywords and defaults included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.term import Op, Term

_VALUE_NEUTRAL = frozenset({"memory_format", "non_blocking", "pin_memory"})
"""Arguments that choose where and how a result lies in memory, never what it is."""

aten = torch.ops.aten

_OUTPUT_DIMS = frozenset({aten.unsqueeze.default, aten.unsqueeze_copy.default, aten.stack.default, aten.cat.default})
"""Operators whose `dim` counts the dimensions of the result (cat takes 1-D empties of any rank)."""

_MEMORY = frozenset({aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default})
"""Operators that read memory by its layout: equal values in other layouts give other results."""

_SYMBOLIC = frozenset(getattr(torch, name) for name in dir(torch) if name.startswith("sym_"))


@cache
def parameters(op: OpOverload) -> tuple[tuple[str, Any, bool], ...]:
    """(name, default, whether the argument is a dimension of the first tensor) for each argument."""
    return tuple(
        (
            argument.name,
            argument.default_value if argument.has_default_value() else None,
            argument.name in ("dim", "dims"),
        )
        for argument in op._schema.arguments
    )


def full_arguments(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], val: Any) -> tuple[Any, ...]:
    """Positional, keyword and defaulted arguments as one tuple in the order of the schema.

    `sum(x, [-1])` and `sum(x, dim=(2,), keepdim=False, dtype=None)` of a 3-D x give the same tuple:
    negative dimensions are counted from the front. An operator without a schema keeps its arguments.
    `val` is the fake result.
    """
    if not isinstance(op, OpOverload):
        return (*args, *((name, kwargs[name]) for name in sorted(kwargs)))
    rank = _rank(op, args, val)
    full = []
    for position, (name, default, is_dim) in enumerate(parameters(op)):
        value = args[position] if position < len(args) else kwargs.get(name, default)
        if name in _VALUE_NEUTRAL:
            value = None
        elif is_dim and rank is not None:
            value = _from_front(value, rank)
        full.append(tuple(value) if isinstance(value, list) else value)
    return tuple(full)


def is_pure(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether equal arguments always give equal results and nothing is written."""
    if isinstance(op, OpOverload):
        draws = torch.Tag.nondeterministic_seeded in op.tags and not _drops_nothing(op, args, kwargs or {})
        return not op._schema.is_mutable and not draws
    return op in _SYMBOLIC or getattr(op, "__module__", "") in ("_operator", "math")


def _drops_nothing(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether all that the operator would draw is a dropout, and that is 0, as in attention at inference."""
    for position, (name, default, _) in enumerate(parameters(op)):
        if name == "dropout_p":
            return bool((args[position] if position < len(args) else kwargs.get(name, default)) == 0.0)
    return False


def is_function_of_values(op: Op, args: Sequence[Any]) -> bool:
    """Whether equal values of the arguments, however they lie in memory, give equal results."""
    return is_pure(op, args) and op not in _MEMORY


def written_arguments(op: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments that the operator writes in place."""
    return tuple(
        position
        for position, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def is_write(node: fx.Node) -> bool:
    """Whether a node writes one of its arguments in place."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def is_view(op: Op) -> bool:
    """Whether a result of the operator shares memory with its first argument."""
    if not isinstance(op, OpOverload):
        return op.__name__ == "getitem"
    return any(result.alias_info is not None for result in op._schema.returns)


def _rank(op: OpOverload, args: tuple[Any, ...], val: Any) -> int | None:
    if op in _OUTPUT_DIMS:
        return val.dim() if isinstance(val, torch.Tensor) else None
    for arg in args:
        first = arg[0] if isinstance(arg, (list, tuple)) and arg else arg
        if isinstance(first, Term):
            return first.val.dim() if isinstance(first.val, torch.Tensor) else None
    return None


def _from_front(dim: Any, rank: int) -> Any:
    if isinstance(dim, (list, tuple)):
        return tuple(_from_front(item, rank) for item in dim)
    if isinstance(dim, int) and not isinstance(dim, bool) and -rank <= dim < 0:
        return dim + rank
    return dim
