"""The proof at the site: the pattern function, traced on the site's own inputs, is the site's graph.

The search is loose about literals that depend on sizes. Here the function is traced again with the
dtypes, shapes, strides and scalars found, over fresh symbols, and compared with nothing left free. What
the trace took for granted about symbolic sizes must already be known of the model's; so the model gets
no guard, and a site that would need one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize import INPUT, Canonical, Term, terms_in, typed
from glmfuse.capture import Fresh
from glmfuse.errors import GlmfuseError
from glmfuse.matching.cone import Cone, cone_of, idle_nodes
from glmfuse.matching.escape import Escape, Footprint, footprint, is_cheap
from glmfuse.matching.index import Index
from glmfuse.matching.layout import Layout
from glmfuse.matching.match import Match, Mismatch
from glmfuse.matching.matcher import COMMUTATIVE, match_outputs
from glmfuse.matching.pattern import ConstraintError, Pattern, Variant, patterns_spelled
from glmfuse.matching.search import Literal, SearchGraph, Spec
from glmfuse.matching.sizes import ModelSizes
from glmfuse.matching.traced import Traced, trace_pattern
from glmfuse.report.stage import Stage

Call = tuple[Any, tuple[Any, ...]]
"""An operator that computes, and the layouts of the tensors that it reads."""


@dataclass(frozen=True, slots=True)
class SiteTrace:
    """The pattern function traced at one kind of site.

    graph: the search graph without anything free. outputs: what it returns. body: the aten graph with
    inner patterns expanded, whose placeholders are `tensors` in order. guards: what must be known.
    calls: the operators of the body that are not idle, with the layouts that they read. of: another
    function of the same arguments traced there, or why it does not fit.
    """

    graph: SearchGraph
    outputs: tuple[Layout, ...]
    tensors: tuple[str, ...]
    body: fx.GraphModule
    guards: tuple[sympy.Basic, ...]
    calls: frozenset[Call]
    of: Callable[[Callable[..., Any]], fx.GraphModule | str]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A proven match and the captured nodes behind it; `inputs` are the nodes that its arguments are."""

    match: Match
    trace: SiteTrace
    inputs: Mapping[str, fx.Node | None]
    cone: Cone

    def unlike_calls(self) -> str | None:
        """The first operator that the pattern function calls on other layouts than the captured graph.

        Equal values in other strides may be summed in another order: the last bit is then not the same.
        """
        ours = _calls(self.cone.nodes - self.cone.idle, lambda expr: expr)
        unlike = sorted(str(op) for op, _ in self.trace.calls ^ ours)
        return unlike[0] if unlike else None


@dataclass(slots=True)
class Checker:
    """Proves matches; one for a graph, with the traces shared by sites of one kind in all graphs."""

    canonical: Canonical
    index: Index
    traces: dict[Any, SiteTrace]
    sizes: ModelSizes = field(default_factory=ModelSizes)
    position: dict[fx.Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Number the nodes, to tell which of several comes first."""
        self.position.update((node, index) for index, node in enumerate(self.canonical.graph.nodes))

    def check(self, match: Match) -> Site | Mismatch:
        """The site of this match, or the first thing about it that does not hold."""
        holders = [self.canonical.members[output] for output in match.outputs]
        cone = self.cone(match, holders)
        if cone.strays:
            stray = f"also {cone.strays[0].name}"
            return match.refused(Stage.CHECK, "stray", "nothing read but the pattern's arguments", stray)
        inputs = {name: self.node_of(term, cone) for name, term in match.inputs.items()}
        if any(inputs[name] is None for name, term in match.inputs.items() if term is not None):
            return match.refused(Stage.CHECK, "written", "arguments that keep their value", "one written in place")
        layouts = {name: Layout.of(node.meta["val"]) for name, node in inputs.items() if node is not None}
        try:
            trace = self.trace(match, layouts)
        except GlmfuseError:
            raise
        except Exception as error:  # whatever the function raises, it does not take these inputs
            return match.refused(Stage.CHECK, "trace", "a function that takes these inputs", _first_line(error))
        if (mismatch := match_outputs(self.index, trace.graph, match)) is not None:
            return replace(mismatch, stage=Stage.CHECK, nodes=match.inner)
        for guard in trace.guards:
            if not self.sizes.fulfil(guard):
                return match.refused(Stage.CHECK, "guard", f"sizes known to fulfil {guard}", "sizes that may not")
        alike: list[list[fx.Node]] = []
        for nodes, layout in zip(holders, trace.outputs, strict=True):
            alike.append([node for node in nodes if layout.is_alike(node)])
            if not alike[-1]:
                found = Layout.of(nodes[0].meta["val"])
                return match.refused(Stage.CHECK, "layout", str(layout), str(found), nodes[0])
        all_alike = all(len(nodes) == len(kept) for nodes, kept in zip(holders, alike, strict=True))
        first = cone if all_alike else self.cone(match, alike)
        site = Site(match, trace, inputs, self.tight_cone(match, alike, first))
        return _stray(site, cone) or _broken_constraint(site) or site

    def cone(self, match: Match, holders: Iterable[Sequence[fx.Node]]) -> Cone:
        """What computes these holders of the outputs; copies of a holder follow it by themselves."""
        outputs = tuple(self.canonical.sources(nodes) for nodes in holders)
        return cone_of(self.canonical, match, outputs, self.position)

    def tight_cone(self, match: Match, holders: Sequence[Sequence[fx.Node]], first: Cone) -> Cone:
        """The same, with `b = clone(a)` inside when a is read by b alone and else something escapes."""
        if isinstance(footprint(first), Footprint):
            return first
        last = [[node for node in nodes if set(node.users) - set(nodes)] or nodes for nodes in holders]
        wider = self.cone(match, last)
        return first if wider.strays or isinstance(footprint(wider), Escape) else wider

    def node_of(self, term: Term | None, cone: Cone) -> fx.Node | None:
        """The captured node that holds an argument, where the site reads it."""
        if term is None:
            return None
        return cone.reads.get(term) or next(iter(self.canonical.members.get(term, ())), None)

    def trace(self, match: Match, layouts: Mapping[str, Layout]) -> SiteTrace:
        """The pattern traced on such inputs; traced once for each kind of site."""
        scalars = match.scalars
        hints = {symbol: self.sizes.hint(symbol) for symbol in sorted(_symbols(layouts), key=str)}
        literals = typed(tuple(scalars.items()))
        spelled = match.spellings()
        kind = (match.pattern, match.variant, tuple(spelled.items()))
        key = (*kind, tuple(layouts.items()), literals, tuple(hints.items()))
        if key not in self.traces:
            with patterns_spelled(spelled):
                self.traces[key] = _trace(match.pattern, match.variant, layouts, scalars, hints)
        return self.traces[key]


def _trace(
    pattern: Pattern,
    variant: Variant,
    layouts: Mapping[str, Layout],
    scalars: Mapping[str, Any],
    hints: Mapping[sympy.Symbol, int],
) -> SiteTrace:
    fresh = Fresh(hints)
    tensors = {name: fresh.empty(at.shape, at.stride, at.dtype, at.device) for name, at in layouts.items()}
    function = pattern.function_of(variant.spelling)
    traced, _ = trace_pattern(pattern, tensors, scalars, function=function)
    body, module = trace_pattern(pattern, tensors, scalars, as_ops=False, function=function)
    outputs = tuple(_in_model_symbols(Layout.of(output.val), fresh.theirs) for output in traced.outputs)
    graph = _exact(pattern, variant, traced, fresh.theirs)
    calls = _calls(_busy(body), fresh.theirs)

    def of(other: Callable[..., Any]) -> fx.GraphModule | str:
        made, theirs = trace_pattern(pattern, tensors, scalars, as_ops=False, function=other)
        layouts = [_in_model_symbols(Layout.of(output.val), fresh.theirs) for output in made.outputs]
        if [layout.significant() for layout in layouts] != [layout.significant() for layout in outputs]:
            return f"it returns {', '.join(map(str, layouts))}"
        if unknown := set(fresh.guards()) - set(guards):
            return f"it needs to know that {', '.join(map(str, unknown))}"
        return theirs

    guards = fresh.guards()
    return SiteTrace(graph, outputs, tuple(tensors), module, guards, calls, cache(of))


def _busy(traced: Traced) -> Iterable[fx.Node]:
    *inner, output = traced.canonical.graph.nodes
    return set(inner) - idle_nodes(traced.canonical, inner, output.all_input_nodes)


def _calls(nodes: Iterable[fx.Node], theirs: Callable[[Any], Any]) -> frozenset[Call]:
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


def _symbols(layouts: Mapping[str, Layout]) -> set[sympy.Symbol]:
    sizes = [size for layout in layouts.values() for size in (*layout.shape, *layout.stride)]
    return set().union(*(size.free_symbols for size in sizes if isinstance(size, sympy.Expr)))


def _stray(site: Site, before: Cone) -> Mismatch | None:
    """Everything that the site reads must be an argument, and read where the trace took it from."""
    if site.cone.strays:
        found = f"also {site.cone.strays[0]}"
        return site.match.refused(Stage.CHECK, "stray", "only arguments of the pattern", found)
    if any(before.reads.get(term) is not node for term, node in site.cone.reads.items()):
        return site.match.refused(Stage.CHECK, "layout", "one node for each argument", "several laid out unlike")
    return None


def _broken_constraint(site: Site) -> Mismatch | None:
    match = site.match
    values = {name: node.meta["val"] if node is not None else None for name, node in site.inputs.items()}
    values.update(match.scalars)
    for constraint in match.pattern.constraints:
        names = constraint.__code__.co_varnames[: constraint.__code__.co_argcount]
        try:
            constraint(**{name: values.get(name) for name in names})
        except ConstraintError as error:
            return match.refused(Stage.CONSTRAINT, "constraint", str(error), str(error.found))
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
