"""The values of a graph as the matcher walks them: how each is defined, and what is made of it.

A match adds a definition: the value is also that pattern's op of those arguments. Larger patterns then
match over smaller ones while the graph stays as it is, and a smaller match that no larger one takes
is still there to be chosen by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from glmfuse.canonicalize import GETITEM, INPUT, Canonical, Op, Term, terms_in
from glmfuse.canonicalize.schema import is_pure
from glmfuse.matching.match import Match
from glmfuse.matching.traced import live_terms


@dataclass(frozen=True, slots=True)
class Definition:
    """`value` is `term.op(*term.args)`: itself, or the op of a match."""

    value: Term
    term: Term
    match: Match | None = None


@dataclass(slots=True)
class Index:
    """Definitions by value, by operator and by argument, over what the graph's outputs depend on."""

    definitions: dict[Term, list[Definition]] = field(default_factory=dict)
    by_op: dict[Op, list[Definition]] = field(default_factory=dict)
    users: dict[Term, list[Definition]] = field(default_factory=dict)

    @classmethod
    def of(cls, canonical: Canonical) -> Index:
        """Index every term that an output or a write of the graph depends on."""
        index = cls()
        roots = [term for term in canonical.terms if term.op is not INPUT and not is_pure(term.op, term.args)]
        for term in live_terms((canonical.outputs, tuple(roots))):
            index._add(Definition(term, term))
        return index

    def add(self, match: Match) -> None:
        """Define the match's outputs as its op."""
        op, arguments = match.call()
        if len(match.outputs) == 1:
            self._add(Definition(match.outputs[0], Term(op, arguments, match.outputs[0].val), match))
            return
        whole = Term(op, arguments, tuple(output.val for output in match.outputs), match.outputs[0].node)
        self._add(Definition(whole, whole, match))
        for position, output in enumerate(match.outputs):
            self._add(Definition(output, Term(GETITEM, (whole, position), output.val), match))

    def occurrences(self, op: Op) -> Sequence[Definition]:
        """Every definition by this operator, in the order of the graph."""
        return self.by_op.get(op, ())

    def _add(self, definition: Definition) -> None:
        self.definitions.setdefault(definition.value, []).append(definition)
        self.by_op.setdefault(definition.term.op, []).append(definition)
        for source in dict.fromkeys(terms_in(definition.term.args)):
            self.users.setdefault(source, []).append(definition)
