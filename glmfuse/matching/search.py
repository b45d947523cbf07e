"""From a pattern function to the graphs that are searched for: one for each variant and dtype.

A variant is traced twice, with unlike sizes and scalars. A literal that is equal in both traces belongs
to the pattern; one that follows a scalar argument is captured; any other depends on sizes, is free in
the search and is compared when the function is traced again at the site.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize import INPUT, Canonical, Op, Term, canonicalize, terms_in
from glmfuse.canonicalize.term import describe_op
from glmfuse.capture import Fresh, trace
from glmfuse.errors import PatternError
from glmfuse.matching import dims as dims_of
from glmfuse.matching.pattern import Case, Pattern, Variant, patterns_as_ops

_FLOATS = (0.01171875, 0.02734375)
"""Values of the first float argument in the two traces, exact in binary and in no pattern's text.

Those of the next ones lie 0.5 further each.
"""


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
    terms: inner terms, producers first. outputs: the terms returned. sources: what each term reads.
    """

    pattern: Pattern
    variant: Variant
    inputs: Mapping[str, Term]
    name_of: Mapping[Term, str]
    terms: tuple[Term, ...]
    outputs: tuple[Term, ...]
    specs: Mapping[Term, tuple[Spec, ...]]
    sources: Mapping[Term, tuple[Term, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Note once what every match asks for each term again."""
        object.__setattr__(self, "sources", {term: tuple(terms_in(term.args)) for term in self.terms})

    @property
    def ops(self) -> frozenset[Op]:
        """The operators that every occurrence has."""
        return frozenset(term.op for term in self.terms)


@dataclass(frozen=True, slots=True)
class Traced:
    """One trace of a pattern function: its graph, its terms, and which of these are arguments."""

    graph_module: fx.GraphModule
    canonical: Canonical
    inputs: Mapping[str, Term]
    outputs: tuple[Term, ...]

    def live(self) -> tuple[Term, ...]:
        """The terms between the arguments and the outputs, producers first."""
        return live_terms(self.outputs)


def trace_pattern(
    pattern: Pattern, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any], as_ops: bool = True
) -> Traced:
    """Trace the function on these fake tensors; `as_ops` keeps the patterns that it calls as ops."""

    def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with patterns_as_ops(as_ops):
            result = pattern.function(**absent, **dict(zip(tensors, values, strict=True)), **scalars)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)

    absent = {p.name: None for p in pattern.parameters if p.is_tensor and p.name not in tensors}
    graph_module = trace(function, tuple(tensors.values()))
    canonical = canonicalize(graph_module.graph)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    inputs = {name: canonical.term_of[node] for name, node in zip(tensors, placeholders, strict=True)}
    return Traced(graph_module, canonical, inputs, canonical.outputs[0] if _nested(canonical) else canonical.outputs)


def _nested(canonical: Canonical) -> bool:
    return len(canonical.outputs) == 1 and isinstance(canonical.outputs[0], tuple)


@cache
def example_trace(pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int) -> Traced:
    """Trace a variant on the first or second of its made-up examples."""
    values = _example_sizes(pattern, variant, which)
    fresh = Fresh()
    tensors = {
        p.name: fresh.empty(
            shape=dims_of.evaluate(p.sizes_without(variant.absent), values, which),
            stride=None,
            dtype={**pattern.dtypes, **dict(variant.dtypes)}.get(p.name, dtype),
            device=torch.device(pattern.devices[which]),
        )
        for p in pattern.parameters
        if p.is_tensor and p.name not in variant.absent
    }
    return trace_pattern(pattern, tensors, _example_scalars(pattern, variant, values, which))


def _example_sizes(pattern: Pattern, variant: Variant, which: int) -> dict[str, int]:
    declared = [p.sizes_without(variant.absent) for p in pattern.parameters]
    return dims_of.assign(declared, {**pattern.examples[which], **dict(variant.sizes)}, which)


def _example_scalars(pattern: Pattern, variant: Variant, values: Mapping[str, int], which: int) -> dict[str, Any]:
    scalars: dict[str, Any] = dict(variant.flags)
    floats = itertools.count(_FLOATS[which], 0.5)
    for parameter in pattern.parameters:
        if parameter.kind == "int":
            scalars[parameter.name] = dims_of.evaluate(parameter.sizes_without(variant.absent), values, which)[0]
        elif parameter.kind == "float":
            scalars[parameter.name] = next(floats)
    return scalars


def variants(pattern: Pattern) -> Iterator[Variant]:
    """Every way to call the pattern, the fullest first."""
    flags = [p.name for p in pattern.parameters if p.kind == "bool"]
    for absent in sorted(pattern.overloads, key=lambda names: (len(names), sorted(names))):
        for values in itertools.product((True, False), repeat=len(flags)):
            for case in pattern.cases:
                yield variant_of(absent, tuple(zip(flags, values, strict=True)), case)


def variant_of(absent: frozenset[str], flags: tuple[tuple[str, bool], ...], case: Case) -> Variant:
    """The variant of one case, whose sizes and dtypes are told apart by their kind."""
    sizes = tuple((name, size) for name, size in case.items() if isinstance(size, int))
    dtypes = tuple((name, dtype) for name, dtype in case.items() if isinstance(dtype, torch.dtype))
    return Variant(absent, flags, sizes, dtypes)


@cache
def search_graph(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> SearchGraph:
    """Trace twice, compare, and say of each literal what it is."""
    first, second = (example_trace(pattern, variant, dtype, which) for which in (0, 1))
    twins = _pair(pattern, first, second)
    terms = first.live()
    names = {term: name for name, term in first.inputs.items()}
    scalars = _scalar_examples(pattern, variant)
    specs = {term: _specs(term.args, twins[term].args, scalars) for term in terms if term.op is not INPUT}
    inner = tuple(term for term in terms if term.op is not INPUT)
    return SearchGraph(pattern, variant, first.inputs, names, inner, first.outputs, specs)


def _scalar_examples(pattern: Pattern, variant: Variant) -> dict[str, tuple[Any, Any]]:
    pair = [_example_scalars(pattern, variant, _example_sizes(pattern, variant, which), which) for which in (0, 1)]
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


def live_terms(outputs: tuple[Any, ...]) -> tuple[Term, ...]:
    """The terms that the outputs depend on, producers first."""
    done: dict[Term, None] = {}
    stack = [(output, False) for output in reversed(tuple(terms_in(tuple(outputs))))]
    while stack:
        term, is_ready = stack.pop()
        if term in done:
            continue
        if is_ready:
            done[term] = None
        else:
            stack.append((term, True))
            stack.extend((source, False) for source in reversed(tuple(terms_in(term.args))))
    return tuple(done)


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
