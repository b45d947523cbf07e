"""Canonical terms in words, so that two graphs can be compared."""

from __future__ import annotations

from typing import Any

from glmfuse.canonicalize.term import INPUT, Term
from glmfuse.matching.traced import live_terms


def spelled(outputs: tuple[Any, ...]) -> list[str]:
    """The live terms in the order in which the outputs need them, with numbers for names."""
    number = {term: f"%{index}" for index, term in enumerate(live_terms(outputs))}

    def show(arg: Any) -> str:
        if isinstance(arg, Term):
            return number[arg]
        return f"({', '.join(map(show, arg))})" if isinstance(arg, tuple) else str(arg)

    return [f"{term} {show(() if term.op is INPUT else term.args)}" for term in number]


def lying(outputs: tuple[Any, ...]) -> list[str]:
    """The values of these terms, in that order: dtype, shape and device."""
    return [repr(term.val) for term in live_terms(outputs)]
