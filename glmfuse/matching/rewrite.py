"""Putting the plan into the graph: one op for each chosen site, every other node as it was captured."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from glmfuse.canonicalize import Term
from glmfuse.matching.select import Candidate

SITE = "glmfuse_site"
"""Key in `node.meta`: the candidate that a fused op stands for."""

_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "seq_nr")


def rewrite(graph: fx.Graph, chosen: Iterable[Candidate], keep_originals: bool = False) -> list[fx.Node]:
    """Replace each chosen site in place and return the fused nodes; the graph is linted.

    With keep_originals the replaced nodes stay, unused, for a comparison to read.
    """
    sites = list(chosen)
    place = {node: index for index, node in enumerate(graph.nodes)}
    fused = [_fuse(graph, candidate, place) for candidate in sites]
    for candidate in () if keep_originals else sites:
        _erase(graph, candidate, place)
    if sites:
        restore_order(graph)
    graph.lint()
    return fused


def _fuse(graph: fx.Graph, candidate: Candidate, place: Mapping[fx.Node, int]) -> fx.Node:
    match, inputs = candidate.site.match, candidate.site.inputs
    _, arguments = match.call()
    names = [argument.name for argument in candidate.op._schema.arguments]
    values = tuple(inputs.get(name) if _is_tensor(arg) else arg for name, arg in zip(names, arguments, strict=True))
    held = candidate.site.cone.outputs
    with graph.inserting_before(min((node for nodes in held for node in nodes), key=place.__getitem__)):
        fused = graph.call_function(candidate.op, values)
        made = [fused] if len(held) == 1 else [_item(graph, fused, index) for index in range(len(held))]
    anchor = match.anchor.node or held[0][0]
    fused.meta.update({key: anchor.meta[key] for key in _PROVENANCE if key in anchor.meta})
    fused.meta["val"] = _value([nodes[0].meta["val"] for nodes in held])
    fused.meta[SITE] = candidate
    for new, nodes in zip(made, held, strict=True):
        new.meta.setdefault("val", nodes[0].meta["val"])
        for node in nodes:
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in candidate.site.cone.nodes)
    return fused


def _item(graph: fx.Graph, fused: fx.Node, index: int) -> fx.Node:
    return graph.call_function(operator.getitem, (fused, index))


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, Term)


def _value(vals: list[Any]) -> Any:
    return vals[0] if len(vals) == 1 else tuple(vals)


def _erase(graph: fx.Graph, candidate: Candidate, place: Mapping[fx.Node, int]) -> None:
    for node in sorted(candidate.footprint.owned, key=place.__getitem__, reverse=True):
        if not node.users:
            graph.erase_node(node)


def restore_order(graph: fx.Graph) -> None:
    """Sort topologically, keeping the captured order wherever the edges allow it."""
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    if all(place[source] < place[node] for node in nodes for source in node.all_input_nodes):
        return
    waiting = {node: len(node.all_input_nodes) for node in nodes}
    ready = [place[node] for node in nodes if not waiting[node]]
    heapq.heapify(ready)
    last: fx.Node | None = None
    while ready:
        node = nodes[heapq.heappop(ready)]
        if last is not None:
            last.append(node)
        last = node
        for user in node.users:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, place[user])
