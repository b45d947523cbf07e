"""From a captured aten graph to the fused one: match, check, select, plan, rewrite, and the report of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize import Canonical, canonicalize
from glmfuse.left_over import left_over
from glmfuse.lowering.inline import inline
from glmfuse.lowering.share import share
from glmfuse.lowering.verify import add_comparisons
from glmfuse.matching.find import find
from glmfuse.matching.pattern import Pattern
from glmfuse.matching.plan import plan
from glmfuse.matching.rewrite import rewrite
from glmfuse.matching.select import Target, select
from glmfuse.matching.site_trace import SiteTrace
from glmfuse.matching.sizes import ModelSizes
from glmfuse.options import Options
from glmfuse.report.report import Body, GraphReport, Report
from glmfuse.rows import body_of, rows_of

_TRACES: dict[Any, SiteTrace] = {}
"""Patterns traced at a kind of site, for the life of the process: recompiles and layers share them."""


@dataclass(frozen=True)
class Fusion:
    """What one compilation fuses with: the patterns to look for, and the targets in order."""

    options: Options
    patterns: tuple[Pattern, ...]
    targets: tuple[Target, ...]
    report: Report
    traces: dict[Any, SiteTrace] = field(default_factory=lambda: _TRACES)

    def wanted(self) -> tuple[Pattern, ...]:
        """Patterns that may be fused, after `only` and `disable`."""
        only, disable = self.options.only, self.options.disable
        return tuple(p for p in self.patterns if (only is None or p.name in only) and p.name not in disable)

    def searched(self, canonical: Canonical) -> tuple[Pattern, ...]:
        """Patterns to look for in a graph: those wanted that may be there, and all that they call."""
        dtypes = {term.val.dtype for term in canonical.terms if isinstance(term.val, torch.Tensor)}
        wanted = [pattern for pattern in self.wanted() if pattern.may_be_in(dtypes)]
        names = {name for pattern in wanted for name in self._called(pattern)}
        return tuple(p for p in self.patterns if p in wanted or p.name in names)

    def _called(self, pattern: Pattern) -> frozenset[str]:
        inner = [other for other in self.patterns if other.name in pattern.calls]
        return pattern.calls.union(*(self._called(other) for other in inner))


def fuse(graph_module: fx.GraphModule, fusion: Fusion, report: GraphReport) -> None:
    """Fuse a graph, and the bodies that its higher-order operators call, in place."""
    report.targets = tuple(target.name for target in fusion.targets)
    with _collector_paused():
        for name, body, calls in _bodies(graph_module):
            report.bodies.append(_fuse_body(name, body, calls, fusion, report))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Nearly all that is allocated here lives on; a full collection would only walk what Dynamo left."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _fuse_body(name: str, module: fx.GraphModule, calls: int, fusion: Fusion, report: GraphReport) -> Body:
    graph = module.graph
    described = body_of(name, calls, graph)
    with report.timed("canonicalize"):
        canonical = canonicalize(graph)
    with report.timed("match"):
        found = find(canonical, fusion.searched(canonical), fusion.traces, ModelSizes(_shape_env(graph)))
    wanted = {pattern.name for pattern in fusion.wanted()}
    found.sites = [site for site in found.sites if site.match.pattern.name in wanted]
    found.misses = [miss for miss in found.misses if miss.pattern.name in wanted]
    with report.timed("select"):
        candidates, refused = select(found.sites, fusion.targets, fusion.options.launch_us)
    with report.timed("plan"):
        planned = plan(graph, candidates)
    fuel = fusion.options.fuel
    chosen, unfueled = (planned.chosen, ()) if fuel is None else (planned.chosen[:fuel], planned.chosen[fuel:])
    described.rows, described.owner = rows_of(found, candidates, chosen, unfueled, (*refused, *planned.rejected))
    with report.timed("left over"):
        left, described.cost = left_over(graph, described.owner)
        described.left_over = tuple(left)
    with report.timed("rewrite"):
        fused = rewrite(graph, chosen, keep_originals=fusion.options.verify)
        if fusion.options.verify:
            add_comparisons(graph, fused, name, fusion.report, report)
        described.fused, described.nodes_fused = str(graph), len(graph.nodes)
        share(graph, inline(graph, fused))
        module.recompile()
    return described


def _bodies(module: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule, int]]:
    """The graph and, once each, the graphs that it calls, with the number of calls."""
    calls: dict[str, int] = {}
    _count_calls(module, "", 1, calls)
    for name, count in calls.items():
        yield name or "main", module.get_submodule(name), count  # type: ignore[misc]


def _count_calls(module: fx.GraphModule, path: str, times: int, calls: dict[str, int]) -> None:
    calls[path] = calls.get(path, 0) + times
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(inner := getattr(module, str(node.target), None), fx.GraphModule):
            _count_calls(inner, f"{path}.{node.target}".lstrip("."), times * max(len(node.users), 1), calls)


def _shape_env(graph: fx.Graph) -> Any:
    for node in graph.nodes:
        val = node.meta.get("val")
        if isinstance(val, torch.Tensor) and getattr(val, "fake_mode", None) is not None:
            return val.fake_mode.shape_env  # type: ignore[attr-defined]
    return None
