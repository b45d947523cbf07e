"""From a pattern function to the graphs that are searched for: one for each variant and dtype.

A variant is traced twice, with unlike sizes and scalars. A literal that is equal in both traces belongs
to the pattern; one that follows a scalar argument is captured; any other depends on sizes, is free in
the search and is compared when the function is traced again at the site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from glmfuse.canonicalize import INPUT, Op, Term, terms_in
from glmfuse.canonicalize.term import describe_op
from glmfuse.errors import PatternError
from glmfuse.matching.examples import EXAMPLE_DEVICE, example_scalars, example_sizes, takes, trace_in_context
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.matching.traced import Traced


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant of the pattern."""

    value: Any


@dataclass(frozen=True, slots=True)
class Capture:
    """A literal that is the pattern's scalar argument of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Free:
    """A literal that depends on sizes; `captured` are (position from the end, argument) in a tuple."""

    captured: tuple[tuple[int, str], ...] = ()


Spec = Term | Literal | Capture | Free | tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class SearchGraph:
    """What one variant looks like in a graph.

    inputs: the term of each tensor argument. specs: for each inner term, what its arguments must be.
    terms: inner terms, producers first. outputs: the terms returned. around: those of `terms` that make an argument,
    and belong to no site. sources: what each term reads.
    """

    pattern: Pattern
    variant: Variant
    inputs: Mapping[str, Term]
    name_of: Mapping[Term, str]
    terms: tuple[Term, ...]
    outputs: tuple[Term, ...]
    specs: Mapping[Term, tuple[Spec, ...]]
    around: frozenset[Term] = frozenset()
    sources: Mapping[Term, tuple[Term, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Note once what every match asks for each term again."""
        object.__setattr__(self, "sources", {term: tuple(terms_in(term.args)) for term in self.terms})

    @property
    def ops(self) -> frozenset[Op]:
        """The operators that every occurrence has."""
        return frozenset(term.op for term in self.terms)


@cache
def search_graph(pattern: Pattern, variant: Variant, dtype: torch.dtype, device: str = EXAMPLE_DEVICE) -> SearchGraph:
    """Trace twice, compare, and say of each literal what it is."""
    first, second = (trace_in_context(pattern, variant, dtype, which, device) for which in (0, 1))
    twins = _pair(pattern, first, second)
    terms = first.live()
    names = {term: name for name, term in first.inputs.items()}
    scalars = _scalar_examples(pattern, variant)
    specs = {term: _specs(term.args, twins[term].args, scalars) for term in terms if term.op is not INPUT}
    inner = tuple(term for term in terms if term.op is not INPUT)
    made = pattern.context.names if pattern.context else ()
    results = first.outputs[: len(first.outputs) - len(made)]
    inputs = {**first.inputs, **dict(zip(made, first.outputs[len(results) :], strict=True))}
    around = frozenset(inner) - _before(results, frozenset(inputs.values()))
    return SearchGraph(pattern, variant, inputs, names, inner, results, specs, around)


def _before(results: tuple[Term, ...], inputs: frozenset[Term]) -> set[Term]:
    """What the results are made of the inputs by, themselves included."""
    found: set[Term] = set()
    stack = list(results)
    while stack:
        term = stack.pop()
        if term not in found and term not in inputs:
            found.add(term)
            stack.extend(terms_in(term.args))
    return found


@cache
def distinct_graphs(
    pattern: Pattern, variants: tuple[Variant, ...], dtypes: tuple[torch.dtype, ...], device: str = EXAMPLE_DEVICE
) -> tuple[SearchGraph, ...]:
    """The graphs of these variants in these dtypes on a device; one that is the same in two dtypes only once."""
    kinds = [(variant, dtype) for variant in variants for dtype in dtypes]
    graphs = [graph for kind in kinds if (graph := _graph_on(pattern, *kind, device)) is not None]
    return tuple({(graph.variant, _signature(graph)): graph for graph in reversed(graphs)}.values())[::-1]


def _graph_on(pattern: Pattern, variant: Variant, dtype: torch.dtype, device: str) -> SearchGraph | None:
    """The search graph of a device, or a CPU's where the function does not trace there; the proof has its own."""
    if device != EXAMPLE_DEVICE and takes(pattern, variant, dtype, device):
        with suppress(PatternError):
            return search_graph(pattern, variant, dtype, device)
    return search_graph(pattern, variant, dtype) if takes(pattern, variant, dtype) else None


def _signature(graph: SearchGraph) -> str:
    """What a match of the graph goes by; text tells 1 from 1.0 and True."""
    number = {term: index for index, term in enumerate((*graph.inputs.values(), *graph.terms))}
    terms = [(describe_op(term.op), _numbered(graph.specs[term], number)) for term in graph.terms]
    return repr((list(graph.inputs), terms, _numbered(graph.outputs, number)))


def _numbered(spec: Any, number: Mapping[Term, int]) -> Any:
    if isinstance(spec, Term):
        return f"%{number[spec]}"
    return tuple(_numbered(item, number) for item in spec) if isinstance(spec, tuple) else spec


def _scalar_examples(pattern: Pattern, variant: Variant) -> dict[str, tuple[Any, Any]]:
    pair = [example_scalars(pattern, variant, example_sizes(pattern, variant, which), which) for which in (0, 1)]
    return {name: (pair[0][name], pair[1][name]) for name in pair[0] if not isinstance(pair[0][name], bool)}


def captured_names(graph: SearchGraph) -> frozenset[str]:
    """The scalar arguments that a match of this graph finds."""
    return frozenset(_captured(tuple(graph.specs.values())))


def _captured(spec: Any) -> Iterator[str]:
    if isinstance(spec, Capture):
        yield spec.name
    elif isinstance(spec, Free):
        yield from (name for _, name in spec.captured)
    elif isinstance(spec, tuple):
        for item in spec:
            yield from _captured(item)


def _pair(pattern: Pattern, first: Traced, second: Traced) -> dict[Term, Term]:
    twins: dict[Term, Term] = {}

    def pair(a: Term, b: Term) -> None:
        if a in twins:
            return
        mine, theirs = tuple(terms_in(a.args)), tuple(terms_in(b.args))
        if a.op is not b.op or len(mine) != len(theirs):
            problem = (
                f"it is another graph at other sizes: {describe_op(a.op)} here, {describe_op(b.op)} there; "
                "give sizes that take one path with examples="
            )
            raise PatternError(pattern.name, pattern.where, problem)
        twins[a] = b
        for x, y in zip(mine, theirs, strict=True):
            pair(x, y)

    for a, b in zip(first.outputs, second.outputs, strict=True):
        pair(a, b)
    return twins


def _specs(mine: tuple[Any, ...], theirs: tuple[Any, ...], scalars: Mapping[str, tuple[Any, Any]]) -> tuple[Spec, ...]:
    return tuple(_spec(a, b, scalars) for a, b in zip(mine, theirs, strict=True))


def _spec(mine: Any, theirs: Any, scalars: Mapping[str, tuple[Any, Any]]) -> Spec:
    if isinstance(mine, Term) or mine is None:
        return mine
    if isinstance(mine, torch.device):
        return Free()
    if isinstance(mine, tuple):
        if any(True for _ in terms_in(mine)):
            return _specs(mine, theirs, scalars)
        return _tuple_spec(mine, theirs, scalars)
    if (name := _follows(mine, theirs, scalars)) is not None:
        return Capture(name)
    return Literal(mine) if _same(mine, theirs) else Free()


def _tuple_spec(mine: tuple[Any, ...], theirs: tuple[Any, ...], scalars: Mapping[str, tuple[Any, Any]]) -> Spec:
    pairs = list(zip(reversed(mine), reversed(theirs), strict=False))
    captured = tuple(
        (position, name) for position, (a, b) in enumerate(pairs) if (name := _follows(a, b, scalars)) is not None
    )
    if len(mine) == len(theirs) and not captured and all(_same(a, b) for a, b in pairs):
        return Literal(mine)
    return Free(captured)


def _follows(mine: Any, theirs: Any, scalars: Mapping[str, tuple[Any, Any]]) -> str | None:
    for name, (first, second) in scalars.items():
        if _same(mine, first) and _same(theirs, second):
            return name
    return None


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)
