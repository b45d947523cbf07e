"""Terms: the values of a graph, hash-consed, each with its operator and its full list of arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import sympy
import torch
from torch import fx

Op = Callable[..., Any]
Arg = Any
"""A Term, None, a Python scalar, a dtype or device, a sympy expression, or a tuple of these."""


def _marker(name: str) -> Op:
    def marker(*_: object) -> None:
        raise TypeError(f"{name} is a marker in terms, not an operator to call")

    marker.__name__ = name
    return marker


INPUT: Final = _marker("input")
"""A placeholder or attribute of the graph."""
AFTER: Final = _marker("after")
"""A tensor as it reads after it was written in place: another value than before."""
GETITEM: Final = operator.getitem


@dataclass(eq=False, slots=True)
class Term:
    """One value: an operator and its arguments, positional and complete as in the operator's schema.

    Terms compare by identity: within a graph, equal values of pure operators are one term.
    `val` is the fake tensor (or tuple of them, or symbol) of the value; `node` is where it was found.
    """

    op: Op
    args: tuple[Arg, ...]
    val: Any
    node: fx.Node | None = None
    index: int = field(default=-1)

    def __str__(self) -> str:
        return f"{describe_op(self.op)}{describe_value(self.val)}"


def terms_in(arg: Arg) -> Iterator[Term]:
    """The terms that an argument refers to, from left to right."""
    if isinstance(arg, Term):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from terms_in(item)


def describe_op(op: Op) -> str:
    """The operator as a reader knows it: `aten.mul.Tensor`, `input`."""
    if isinstance(op, torch._ops.OpOverload):
        return str(op)
    return getattr(op, "__name__", str(op))


def describe_value(val: Any) -> str:
    """The dtype and shape of a value: `bf16[2, 5, 64]`; empty when it is no tensor."""
    if not isinstance(val, torch.Tensor):
        return ""
    return f" {str(val.dtype).removeprefix('torch.')}[{', '.join(str(size) for size in val.shape)}]"


def size_of(size: int | torch.SymInt) -> int | sympy.Expr:
    """A size as a number, or as the expression of its symbols; adds no guard."""
    if isinstance(size, torch.SymInt):
        expr = size.node.expr
        return int(expr) if expr.is_number else expr
    return int(size)


def shape_of(val: torch.Tensor) -> tuple[int | sympy.Expr, ...]:
    """The sizes of a fake tensor as numbers and expressions."""
    return tuple(size_of(size) for size in val.shape)
