"""The declared dims of a pattern: `"... H"`, `"(N+2*K)*D H"`; symbols are sizes that tracing varies.

A tensor that has other sizes where an optional one is absent says so: `"I H; without w_up: 2*I H"`. Beside `"... H"`,
`"(...) H"` has a row for each place of the leading dims.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Final

LEAD: Final = "..."
ROWS: Final = "(...)"
_PRIMES = (
    (17, 23, 31, 41, 47, 59, 67, 73, 83, 97, 103, 109, 127, 137, 149, 157),
    (19, 29, 37, 43, 53, 61, 71, 79, 89, 101, 107, 113, 131, 139, 151, 163),
)
_LEADS = ((5, 7), (11, 3))
_LEAD_COUNTS = (2, 1)
_NODES = (ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Name, ast.Load, ast.Constant)


Sizes = tuple[str, ...]


def parse(text: str) -> dict[str, Sizes]:
    """The sizes by the tensor whose absence they go with ("" where all are there); ValueError if unclear."""
    found: dict[str, Sizes] = {}
    for clause in text.split(";"):
        condition, _, sizes = clause.rpartition(":")
        words = condition.split()
        if words and (len(words) != 2 or words[0] != "without"):
            raise ValueError(f"{condition!r} is not 'without NAME'")
        found[words[1] if words else ""] = _parse_sizes(sizes)
    return found


def _parse_sizes(text: str) -> Sizes:
    sizes = tuple(text.split())
    for size in sizes:
        if size in (LEAD, ROWS):
            continue
        if not all(isinstance(node, _NODES) for node in ast.walk(ast.parse(size, mode="eval"))):
            raise ValueError(f"{size!r} is not a sum or product of names and numbers")
    if LEAD in sizes[1:]:
        raise ValueError("'...' stands only in front")
    return sizes


def symbols(sizes: Sequence[str]) -> Iterator[str]:
    """The names in a declaration, in order."""
    for size in sizes:
        if size not in (LEAD, ROWS):
            yield from (node.id for node in ast.walk(ast.parse(size, mode="eval")) if isinstance(node, ast.Name))


def assign(declared: Sequence[Sequence[str]], fixed: Mapping[str, int], which: int) -> dict[str, int]:
    """A size for each symbol: those of the author's example, and unlike primes for the rest.

    A count for `...` is passed on.
    """
    names = dict.fromkeys(name for sizes in declared for name in symbols(sizes))
    free = iter([prime for prime in _PRIMES[which] if prime not in fixed.values()])
    sizes = {name: fixed[name] if name in fixed else next(free) for name in names}
    return {**sizes, LEAD: fixed[LEAD]} if LEAD in fixed else sizes


def evaluate(sizes: Sequence[str], values: Mapping[str, int], which: int) -> tuple[int, ...]:
    """The shape of a tensor; `...` is as many dimensions as given, or two in the first example, one in the second."""
    shape: list[int] = []
    lead = _LEADS[which][: values.get(LEAD, _LEAD_COUNTS[which])]
    for size in sizes:
        if size == LEAD:
            shape.extend(lead)
        elif size == ROWS:
            shape.append(prod(lead))
        else:
            shape.append(eval(compile(ast.parse(size, mode="eval"), size, "eval"), {"__builtins__": {}}, dict(values)))
    return tuple(shape)
