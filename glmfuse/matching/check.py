"""The proof at the site: the pattern function, traced on the site's own inputs, is the site's graph.

The search is loose about literals that depend on sizes. Here the function is traced again with the
dtypes, shapes, strides and scalars found, over fresh symbols, and compared with nothing left free. What
the trace took for granted about symbolic sizes must already be known of the model's; so the model gets
no guard, and a site that would need one is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
from torch import fx

from glmfuse.canonicalize import Canonical, Term, typed
from glmfuse.errors import GlmfuseError
from glmfuse.matching.cone import Cone, cone_of
from glmfuse.matching.escape import Escape, Footprint, footprint
from glmfuse.matching.index import Index
from glmfuse.matching.layout import Layout
from glmfuse.matching.match import Match, Mismatch
from glmfuse.matching.matcher import match_outputs
from glmfuse.matching.pattern import ConstraintError
from glmfuse.matching.site_trace import SiteTrace, calls_of, trace_site
from glmfuse.matching.sizes import ModelSizes
from glmfuse.report.stage import Stage


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A proven match and the captured nodes behind it; `inputs` are the nodes that its arguments are."""

    match: Match
    trace: SiteTrace
    inputs: Mapping[str, fx.Node | None]
    cone: Cone

    def unlike_op(self) -> str | None:
        """How the results of the pattern's op would lie otherwise than what the site holds."""
        own = self.trace.own()
        ours, theirs = ([at.significant() for at in layouts] for layouts in (self.trace.outputs, own))
        returned = ", ".join(map(str, own)) or "nothing on these inputs"
        return None if ours == theirs else f"its op returns {returned}"

    def unlike_calls(self) -> str | None:
        """The first operator that the pattern function calls on other layouts than the captured graph.

        Equal values in other strides may be summed in another order: the last bit is then not the same.
        """
        ours = calls_of(self.cone.nodes - self.cone.idle, lambda expr: expr)
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
        hints = {symbol: self.sizes.hint(symbol) for symbol in sorted(_symbols(layouts), key=str)}
        literals = typed(tuple(match.scalars.items()))
        spelled = match.spellings()
        kind = (match.pattern, match.variant, tuple(spelled.items()))
        key = (*kind, tuple(layouts.items()), literals, tuple(hints.items()))
        if key not in self.traces:
            self.traces[key] = trace_site(match.pattern, match.variant, layouts, match.scalars, spelled, hints)
        return self.traces[key]


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
