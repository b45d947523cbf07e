"""What the stages hand on: a Match where a pattern is, a Mismatch where it nearly is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize import Arg, Op, Term
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.report.stage import Stage


@dataclass(frozen=True, slots=True)
class Finding:
    """Why not: a short code, what was expected, what was found, and at which node."""

    code: str
    expected: str
    found: str
    node: fx.Node | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A pattern that is not at this anchor, and where it stopped.

    matched: how many of the pattern's terms had been found, of `total`. nodes: values matched so far.
    wants: the operator expected where it stopped, when that was another one; `at`: the value there.
    """

    pattern: Pattern
    anchor: Term
    stage: Stage
    matched: int
    total: int
    explain: Callable[[], Finding]
    nodes: frozenset[Term] = frozenset()
    wants: Op | None = None
    at: Term | None = None

    @property
    def finding(self) -> Finding:
        """The reason, put into words when somebody asks."""
        return self.explain()

    @property
    def reach(self) -> tuple[int, float]:
        """Orders mismatches: the further stage first, then the larger part of the pattern."""
        return (self.stage, self.matched / max(self.total, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A pattern found: which value each argument is, and which values it makes.

    inputs: terms by argument name, None for an optional one that is not there. scalars: captured
    arguments and flags. inner: the values that the site computes, outputs included. parts: the matches
    of smaller patterns that it is made of.
    """

    pattern: Pattern
    variant: Variant
    anchor: Term
    inputs: Mapping[str, Term | None]
    scalars: Mapping[str, Any]
    outputs: tuple[Term, ...]
    inner: frozenset[Term]
    parts: tuple[Match, ...]

    def call(self) -> tuple[OpOverload, tuple[Arg, ...]]:
        """The op of this match and its arguments in the order of its schema."""
        arguments = {**self.inputs, **self.scalars}
        overload = self.pattern.overload(arguments)
        return overload, tuple(arguments.get(argument.name) for argument in overload._schema.arguments)

    def spellings(self) -> dict[str, str]:
        """By name, the spellings of the smaller patterns inside that are not spelled as their own functions."""
        found = {part.pattern.name: part.variant.spelling for part in self.parts if part.variant.spelling}
        for part in self.parts:
            found.update(part.spellings())
        return dict(sorted(found.items()))

    def refused(self, stage: Stage, code: str, expected: str, found: str, node: fx.Node | None = None) -> Mismatch:
        """This match, stopped at a later stage; `node` is where, the anchor's unless given."""
        finding = Finding(code, expected, found, node or self.anchor.node)
        total = len(self.inner)
        return Mismatch(self.pattern, self.anchor, stage, total, total, lambda: finding, self.inner)
