"""The pattern function traced at one kind of site: on inputs laid out as the site's, over fresh symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from glmfuse.canonicalize import INPUT, Term, terms_in
from glmfuse.capture import Fresh, as_tuple
from glmfuse.matching.cone import idle_nodes
from glmfuse.matching.escape import is_cheap
from glmfuse.matching.layout import Layout
from glmfuse.matching.matcher import COMMUTATIVE
from glmfuse.matching.pattern import Pattern, Variant, patterns_spelled
from glmfuse.matching.search import Literal, SearchGraph, Spec
from glmfuse.matching.traced import Traced, trace_pattern

Call = tuple[Any, tuple[Any, ...]]
"""An operator that computes, and the layouts of the tensors that it reads."""


@dataclass(frozen=True, slots=True)
class SiteTrace:
    """The pattern function traced at one kind of site.

    graph: the search graph without anything free. outputs: what the body returns. own: what the pattern's op would,
    where the site is spelled otherwise; nothing where its function does not trace. body: the aten graph with inner
    patterns expanded, whose placeholders are `tensors` in order. guards: what must be known. calls: the operators of
    the body that are not idle, with the layouts that they read. of: another function of the same arguments traced
    there, or why it does not fit.
    """

    graph: SearchGraph
    outputs: tuple[Layout, ...]
    own: Callable[[], tuple[Layout, ...]]
    tensors: tuple[str, ...]
    body: fx.GraphModule
    guards: tuple[sympy.Basic, ...]
    calls: frozenset[Call]
    of: Callable[[Callable[..., Any]], fx.GraphModule | str]


def trace_site(
    pattern: Pattern,
    variant: Variant,
    layouts: Mapping[str, Layout],
    scalars: Mapping[str, Any],
    spelled: Mapping[str, str] = MappingProxyType({}),
    hints: Mapping[sympy.Symbol, int] = MappingProxyType({}),
) -> SiteTrace:
    """Trace a variant on tensors that lie so.

    spelled: the spellings of the patterns that it calls, by their names. hints: values of the symbols in the layouts.
    """
    fresh = Fresh(hints)
    tensors = _fakes(fresh, layouts)
    function = pattern.function_of(variant.spelling)
    with patterns_spelled(spelled):
        traced, _ = trace_pattern(pattern, tensors, scalars, function=function)
        body, module = trace_pattern(pattern, tensors, scalars, as_ops=False, function=function)
        wanted = [output.val for output in traced.outputs]
        returned = _layouts(_returned(module.graph), fresh)
        outputs = _layouts(wanted, fresh)
        if unlike := _unlike(outputs, returned):
            laid_out = _laid_out(function, wanted, unlike)
            _, module = trace_pattern(pattern, tensors, scalars, as_ops=False, function=laid_out)
    graph = _exact(pattern, variant, traced, fresh.theirs)
    calls = calls_of(_busy(body), fresh.theirs)
    guards = fresh.guards()

    def of(other: Callable[..., Any]) -> fx.GraphModule | str:
        _, theirs = trace_pattern(pattern, tensors, scalars, as_ops=False, function=other)
        layouts = _layouts(_returned(theirs.graph), fresh)
        if len(layouts) != len(outputs) or _unlike(layouts, outputs):
            return f"it returns {', '.join(map(str, layouts))}"
        if unknown := set(fresh.guards()) - set(guards):
            return f"it needs to know that {', '.join(map(str, unknown))}"
        return theirs

    def own() -> tuple[Layout, ...]:
        return _own_outputs(pattern, layouts, scalars, hints) if spelled or variant.spelling else returned

    return SiteTrace(graph, outputs, cache(own), tuple(tensors), module, guards, calls, cache(of))


def _unlike(ours: Sequence[Layout], theirs: Sequence[Layout]) -> list[int]:
    """Places at which the two lie otherwise."""
    pairs = zip(ours, theirs, strict=True)
    return [place for place, (a, b) in enumerate(pairs) if a.significant() != b.significant()]


def _laid_out(
    function: Callable[..., Any], wanted: Sequence[torch.Tensor], places: Sequence[int]
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The function with these outputs copied into the strides that are wanted.

    A copy is the same value, so a function that ends with one, or an inner pattern spelled without, lies otherwise
    than the node of the graph that holds the value.
    """

    def laid_out(**arguments: Any) -> tuple[torch.Tensor, ...]:
        results = enumerate(as_tuple(function(**arguments)))
        return tuple(_as(wanted[place], each) if place in places else each for place, each in results)

    return laid_out


def _as(wanted: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A dense copy whose dimensions lie in the order of another's; ValueError where that is not dense."""
    order = sorted(range(wanted.dim()), key=lambda dim: -wanted.stride()[dim])
    made = value.permute(order).contiguous().permute([order.index(dim) for dim in range(wanted.dim())])
    if Layout.of(made).significant() != Layout.of(wanted).significant():
        raise ValueError(f"its result lies as {Layout.of(value)}, not as {Layout.of(wanted)}")
    return made


def _fakes(fresh: Fresh, layouts: Mapping[str, Layout]) -> dict[str, torch.Tensor]:
    return {name: fresh.empty(at.shape, at.stride, at.dtype, at.device) for name, at in layouts.items()}


def _own_outputs(
    pattern: Pattern, layouts: Mapping[str, Layout], scalars: Mapping[str, Any], hints: Mapping[sympy.Symbol, int]
) -> tuple[Layout, ...]:
    fresh = Fresh(hints)
    try:
        _, module = trace_pattern(pattern, _fakes(fresh, layouts), scalars, as_ops=False)
    except Exception:  # it may be written for other inputs than this spelling of it
        return ()
    return _layouts(_returned(module.graph), fresh)


def _returned(graph: fx.Graph) -> list[torch.Tensor]:
    """What a trace returns; a term lies as the first node that holds the value, before any copy of it."""
    (returned,) = graph.output_node().args
    return [node.meta["val"] for node in tree_leaves(returned)]


def _layouts(vals: Iterable[torch.Tensor], fresh: Fresh) -> tuple[Layout, ...]:
    return tuple(_in_model_symbols(Layout.of(val), fresh.theirs) for val in vals)


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
