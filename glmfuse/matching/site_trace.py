"""The pattern function traced at one kind of site: on inputs laid out as the site's, over fresh symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize import INPUT, Term, terms_in
from glmfuse.capture import Fresh
from glmfuse.matching.cone import idle_nodes
from glmfuse.matching.escape import is_cheap
from glmfuse.matching.layout import Layout
from glmfuse.matching.match import Match
from glmfuse.matching.matcher import COMMUTATIVE
from glmfuse.matching.pattern import Pattern, Variant, patterns_spelled
from glmfuse.matching.search import Literal, SearchGraph, Spec
from glmfuse.matching.traced import Traced, trace_pattern

Call = tuple[Any, tuple[Any, ...]]
"""An operator that computes, and the layouts of the tensors that it reads."""


@dataclass(frozen=True, slots=True)
class SiteTrace:
    """The pattern function traced at one kind of site.

    graph: the search graph without anything free. outputs: what the body returns, as the site is spelled; own: what the
    pattern's function and its ops return, empty where that does not trace. body: the aten graph with inner patterns
    expanded, whose placeholders are `tensors` in order. guards: what must be known.
    calls: the operators of the body that are not idle, with the layouts that they read. of: another
    function of the same arguments traced there, or why it does not fit.
    """

    graph: SearchGraph
    outputs: tuple[Layout, ...]
    own: tuple[Layout, ...]
    tensors: tuple[str, ...]
    body: fx.GraphModule
    guards: tuple[sympy.Basic, ...]
    calls: frozenset[Call]
    of: Callable[[Callable[..., Any]], fx.GraphModule | str]


def trace_site(match: Match, layouts: Mapping[str, Layout], hints: Mapping[sympy.Symbol, int]) -> SiteTrace:
    """Trace the function that a match spells. layouts: its arguments'; hints: values of the symbols in them."""
    pattern, scalars, spelled = match.pattern, match.scalars, match.spellings()
    fresh = Fresh(hints)
    tensors = _fakes(fresh, layouts)
    function = pattern.function_of(match.variant.spelling)
    with patterns_spelled(spelled):
        traced, _ = trace_pattern(pattern, tensors, scalars, function=function)
        body, module = trace_pattern(pattern, tensors, scalars, as_ops=False, function=function)
    outputs = _layouts(body, fresh)
    graph = _exact(pattern, match.variant, traced, fresh.theirs)
    calls = calls_of(_busy(body), fresh.theirs)
    guards = fresh.guards()

    def of(other: Callable[..., Any]) -> fx.GraphModule | str:
        made, theirs = trace_pattern(pattern, tensors, scalars, as_ops=False, function=other)
        layouts = _layouts(made, fresh)
        if [layout.significant() for layout in layouts] != [layout.significant() for layout in outputs]:
            return f"it returns {', '.join(map(str, layouts))}"
        if unknown := set(fresh.guards()) - set(guards):
            return f"it needs to know that {', '.join(map(str, unknown))}"
        return theirs

    is_spelled = bool(spelled or match.variant.spelling)
    own = _own_outputs(pattern, layouts, scalars, hints) if is_spelled else outputs
    return SiteTrace(graph, outputs, own, tuple(tensors), module, guards, calls, cache(of))


def _fakes(fresh: Fresh, layouts: Mapping[str, Layout]) -> dict[str, torch.Tensor]:
    return {name: fresh.empty(at.shape, at.stride, at.dtype, at.device) for name, at in layouts.items()}


def _own_outputs(
    pattern: Pattern, layouts: Mapping[str, Layout], scalars: Mapping[str, Any], hints: Mapping[sympy.Symbol, int]
) -> tuple[Layout, ...]:
    fresh = Fresh(hints)
    try:
        return _layouts(trace_pattern(pattern, _fakes(fresh, layouts), scalars, as_ops=False)[0], fresh)
    except Exception:  # it may be written for other inputs than this spelling of it
        return ()


def _layouts(traced: Traced, fresh: Fresh) -> tuple[Layout, ...]:
    return tuple(_in_model_symbols(Layout.of(output.val), fresh.theirs) for output in traced.outputs)


def _busy(traced: Traced) -> Iterable[fx.Node]:
    *inner, output = traced.canonical.graph.nodes
    return set(inner) - idle_nodes(traced.canonical, inner, output.all_input_nodes)


def calls_of(nodes: Iterable[fx.Node], theirs: Callable[[Any], Any]) -> frozenset[Call]:
    """What these nodes call; theirs: an expression of their sizes in the model's symbols."""

    def layouts(node: fx.Node) -> tuple[Any, ...]:
        read = [_in_model_symbols(Layout.of(val), theirs).significant() for val in _tensors_read(node)]
        return tuple(sorted(read, key=repr) if node.target in COMMUTATIVE else read)

    return frozenset(
        (node.target, layouts(node))
        for node in nodes
        if node.op == "call_function" and isinstance(node.target, OpOverload) and not is_cheap(node)
        if not isinstance(node.meta.get("val"), torch.SymInt)
    )


def _tensors_read(node: fx.Node) -> list[torch.Tensor]:
    vals = [source.meta.get("val") for source in node.all_input_nodes]
    return [val for val in vals if isinstance(val, torch.Tensor)]


def _exact(pattern: Pattern, variant: Variant, traced: Traced, theirs: Callable[[Any], Any]) -> SearchGraph:
    inner = tuple(term for term in traced.live() if term.op is not INPUT)
    specs = {term: tuple(_literal(arg, theirs) for arg in term.args) for term in inner}
    names = {term: name for name, term in traced.inputs.items()}
    return SearchGraph(pattern, variant, traced.inputs, names, inner, traced.outputs, specs)


def _literal(arg: Any, theirs: Callable[[Any], Any]) -> Spec:
    if isinstance(arg, Term):
        return arg
    if isinstance(arg, tuple) and any(True for _ in terms_in(arg)):
        return tuple(_literal(item, theirs) for item in arg)
    return Literal(_translate(arg, theirs))


def _translate(value: Any, theirs: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_translate(item, theirs) for item in value)
    return theirs(value) if isinstance(value, sympy.Expr) else value


def _in_model_symbols(layout: Layout, theirs: Callable[[Any], Any]) -> Layout:
    return Layout(_translate(layout.shape, theirs), _translate(layout.stride, theirs), layout.dtype, layout.device)
