"""Matching a whole graph: level by level, each pattern in each variant around its rarest operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload

from glmfuse.canonicalize import INPUT, Canonical, Op, Term, terms_in
from glmfuse.capture import device_of
from glmfuse.matching.check import Checker, Site
from glmfuse.matching.escape import is_cheap
from glmfuse.matching.examples import variants
from glmfuse.matching.index import Definition, Index
from glmfuse.matching.match import Mismatch
from glmfuse.matching.matcher import match_at
from glmfuse.matching.pattern import NAMESPACE, Pattern
from glmfuse.matching.search import SearchGraph, distinct_graphs
from glmfuse.matching.site_trace import SiteTrace
from glmfuse.matching.sizes import NO_SIZES, ModelSizes
from glmfuse.matching.traced import live_terms

Missed = Mapping[str, set[Term]]
"""By pattern name, the values at which it nearly matched."""


@dataclass(slots=True)
class Found:
    """All that matching has to say about a graph: proven sites, and the nearest misses."""

    sites: list[Site] = field(default_factory=list)
    misses: list[Mismatch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Kinds:
    """What search graphs are traced in: the floating dtypes of a graph's values, and the kind of its device."""

    dtypes: tuple[torch.dtype, ...]
    device: str


def find(
    canonical: Canonical,
    patterns: Sequence[Pattern],
    traces: dict[Any, SiteTrace],
    sizes: ModelSizes = NO_SIZES,
) -> Found:
    """Every site of these patterns (with all that they call among them), smallest patterns first."""
    index = Index.of(canonical)
    checker = Checker(canonical, index, traces, sizes)
    found = Found()
    kinds = Kinds(_float_dtypes(canonical), device_of(term.val for term in canonical.terms))
    for level in sorted({pattern.level for pattern in patterns}):
        sites = [
            site
            for pattern in patterns
            if pattern.level == level
            for site in _find_pattern(pattern, index, checker, kinds, found.misses)
        ]
        for site in sites:
            index.add(site.match)
        found.sites.extend(sites)
    _near_misses(patterns, index, kinds, found)
    return found


def _find_pattern(pattern: Pattern, index: Index, checker: Checker, kinds: Kinds, misses: list[Mismatch]) -> list[Site]:
    sites: dict[Any, Site] = {}
    refused: dict[Any, Mismatch] = {}
    for graph in _graphs(pattern, kinds):
        if not graph.terms or any(not index.occurrences(op) for op in graph.ops):
            continue  # without operators it is an argument, as the cast of a tensor that has the dtype
        for anchor, at in _anchors(graph, index):
            result = match_at(index, graph, anchor, at)
            if isinstance(result, Mismatch):
                continue
            key = (result.inner, frozenset(result.inputs.values()))
            if key in sites:
                continue
            checked = checker.check(result)
            if isinstance(checked, Site):
                sites[key] = checked
                refused.pop(key, None)
            else:
                refused.setdefault(key, checked)
    misses.extend(miss for miss in refused.values() if not _is_inside(miss, sites.values()))
    return list(sites.values())


def _is_inside(miss: Mismatch, sites: Iterable[Site]) -> bool:
    """Whether a site has all that was refused: the search graph of another dtype may be a part of it."""
    return any(miss.nodes <= site.match.inner for site in sites)


def _graphs(pattern: Pattern, kinds: Kinds) -> Iterable[SearchGraph]:
    return distinct_graphs(pattern, tuple(variants(pattern)), kinds.dtypes, kinds.device)


def _anchors(graph: SearchGraph, index: Index) -> list[tuple[Term, Definition]]:
    """What to match the graph around: its rarest operator, and its output where sites share that.

    Around a value that several sites read, such as one mask of all layers, only one of them is found. A
    value that all the output's arguments went into is not shared.
    """
    rarest = _rarest(graph, index)
    found = [(rarest, at) for at in index.occurrences(rarest.op)]
    is_shared = any(_is_shared(rarest, at.value, graph, index) for _, at in found)
    if is_shared and not _arguments_of(graph.outputs[0]) <= _arguments_of(rarest):
        found += [(graph.outputs[0], at) for at in index.occurrences(graph.outputs[0].op)]
    return found


def _is_shared(mine: Term, value: Term, graph: SearchGraph, index: Index) -> bool:
    """Whether a value, or what is made of it alone, has more readers in the graph than in the pattern."""
    readers = [term for term, sources in graph.sources.items() if mine in sources]
    users = index.users.get(value, ())
    if len(users) > max(len(readers), 1):
        return True
    if len(readers) != 1 or len(users) != 1:
        return False
    return _is_shared(readers[0], users[0].value, graph, index)


def _arguments_of(term: Term) -> set[Term]:
    return {source for source in live_terms((term,)) if source.op is INPUT}


def _rarest(graph: SearchGraph, index: Index) -> Term:
    """The rarest operator on an argument; a constant, such as a triangle of ones, is one value of all sites."""
    terms = (term for term in graph.terms if term not in graph.around and _arguments_of(term))
    return min(terms, key=lambda term: len(index.occurrences(term.op)))


def _float_dtypes(canonical: Canonical) -> tuple[torch.dtype, ...]:
    """Those that a model computes in; 8-bit floats are only stored, and patterns that take them say so."""
    dtypes = {term.val.dtype for term in canonical.terms if isinstance(term.val, torch.Tensor)}
    found = {dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1}
    return tuple(sorted(found, key=str))


def _near_misses(patterns: Sequence[Pattern], index: Index, kinds: Kinds, found: Found) -> None:
    """Try the values that no match covers and no proof refused; keep what looks like half a pattern or more."""
    missed: dict[str, set[Term]] = {}
    for miss in found.misses:
        missed.setdefault(miss.pattern.name, set()).update(miss.nodes)
    for pattern in sorted(patterns, key=lambda pattern: pattern.level):
        covered, shared = _covered(pattern, found.sites)
        covered |= missed.get(pattern.name, set())
        best: dict[Term, Mismatch] = {}
        for graph in _graphs(pattern, kinds):
            for anchor in _distinct_ops(graph):
                for at in tuple(index.occurrences(anchor.op)):
                    if at.value in covered or (at.match is not None and at.match.pattern is pattern):
                        continue
                    result = match_at(index, graph, anchor, at)
                    if isinstance(result, Mismatch) and _is_near(result, at.value in shared, missed):
                        _keep(best, result, at)
        kept = _without_overlaps(best.values())
        missed.setdefault(pattern.name, set()).update(term for miss in kept for term in miss.nodes)
        found.misses.extend(kept)


def _covered(pattern: Pattern, sites: Sequence[Site]) -> tuple[set[Term], set[Term]]:
    """Values that belong to a match of this pattern, or of one that is no part of this pattern.

    Apart from them those that a part of both computes: a linear between an MLP and a norm may be either's.
    """
    covered: set[Term] = set()
    shared: set[Term] = set()
    for match in (site.match for site in sites):
        if match.pattern.name in pattern.calls or match.pattern.level < pattern.level:
            continue
        parts = () if match.pattern is pattern else match.parts
        both = {output for part in parts if part.pattern.name in pattern.calls for output in part.outputs}
        covered |= match.inner - both
        shared |= both
    return covered, shared


def _distinct_ops(graph: SearchGraph) -> Iterable[Term]:
    by_op: dict[Op, Term] = {}
    for term in reversed(graph.terms):
        by_op.setdefault(term.op, term)
    return by_op.values()


def _keep(best: dict[Term, Mismatch], result: Mismatch, at: Definition) -> None:
    if at.value not in best or result.reach > best[at.value].reach:
        best[at.value] = result


def _is_near(result: Mismatch, is_shared: bool, missed: Missed) -> bool:
    """Whether most of the pattern is there, or it lacks a smaller one that nearly was.

    Where no other pattern has the value, half of it and something like the missing operator are enough.
    """
    if 2 * result.matched > result.total or _stops_at_miss(result, missed):
        return True
    is_half = 2 * result.matched == result.total and not is_shared
    return is_half and result.wants is not None and _resembles(result.wants, result.at)


def _resembles(wanted: Op, found: Term | None) -> bool:
    """Whether an operator computes, from as many tensors as the wanted one; none resembles a whole pattern."""
    if found is None or found.node is None or not isinstance(wanted, OpOverload) or is_cheap(found.node):
        return False
    if wanted.namespace == NAMESPACE:
        return False
    tensors = sum(1 for argument in wanted._schema.arguments if str(argument.type) == "Tensor")
    return found.op is not INPUT and tensors == sum(1 for _ in terms_in(found.args))


def _stops_at_miss(result: Mismatch, missed: Missed) -> bool:
    """Whether the pattern stops for want of a smaller one that nearly was there."""
    if not isinstance(result.wants, OpOverload) or result.wants.namespace != NAMESPACE:
        return False
    return result.at in missed.get(result.wants._schema.name.partition("::")[2], ())


def _without_overlaps(misses: Iterable[Mismatch]) -> list[Mismatch]:
    kept: list[Mismatch] = []
    taken: set[Term] = set()
    for miss in sorted(misses, key=lambda miss: (miss.reach, -miss.anchor.index), reverse=True):
        if not taken & miss.nodes:
            kept.append(miss)
            taken |= miss.nodes
    return kept
