"""Putting the plan into the graph: one op for each chosen site, every other node as it was captured."""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from glmfuse.canonicalize import Term
from glmfuse.canonicalize.schema import is_write
from glmfuse.matching.order import kept_order
from glmfuse.matching.select import Candidate
from glmfuse.matching.size_reads import compute, needs_no_tensor

SITE = "glmfuse_site"
"""Key in `node.meta`: the candidate that a fused op stands for."""

RESULTS = "glmfuse_results"
"""Key in `node.meta`: the nodes that hold what a fused op makes, in the order of the pattern's outputs."""

_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "seq_nr")


def rewrite(graph: fx.Graph, chosen: Iterable[Candidate], keep_originals: bool = False) -> list[fx.Node]:
    """Replace each chosen site in place and return the fused nodes; the graph is linted.

    With keep_originals the replaced nodes stay, unused, for a comparison to read.
    """
    sites = list(chosen)
    order = list(kept_order(graph)) if sites else []
    first_reads: list[tuple[fx.Node, fx.Node]] = []
    last_reads: list[tuple[fx.Node, fx.Node]] = []
    place = {node: index for index, node in enumerate(graph.nodes)}
    owned = {node for candidate in sites for node in candidate.footprint.owned}
    vanishing = owned | _lift_sizes(owned, place, keep_originals)
    replaced: dict[fx.Node, fx.Node] = {}
    fused = [_insert(graph, candidate, place, replaced) for candidate in sites]
    for node, candidate in zip(fused, sites, strict=True):
        # A site may read what another makes; by now all of them are there.
        node.args = fx.map_arg(node.args, lambda source: replaced.get(source, source))
        _redirect(candidate, replaced, keep_originals)
        if candidate.write_back is not None:
            graph.erase_node(candidate.write_back)
        if candidate.write_back is not None or is_write(node):
            first_reads += [(original, node) for original in candidate.site.cone.nodes]
        if is_write(node):
            last_reads += [(node, result) for result in node.meta[RESULTS]]
    for node in () if keep_originals else sorted(vanishing, key=place.__getitem__, reverse=True):
        if not node.users:
            graph.erase_node(node)
    if sites:
        restore_order(graph, [*order, *last_reads, *(first_reads if keep_originals else ())])
    graph.lint()
    return fused


def _lift_sizes(owned: Collection[fx.Node], place: Mapping[fx.Node, int], keep_originals: bool) -> set[fx.Node]:
    """Have sizes that others need read off nothing that a site replaces; what only sites need vanishes with them."""
    reads = {user for node in owned for user in node.users if user not in owned and needs_no_tensor(user)}
    needed = {read for read in reads if keep_originals or any(user not in owned for user in read.users)}
    for read in sorted(needed, key=place.__getitem__):
        compute(read)
    return reads - needed


def _insert(
    graph: fx.Graph, candidate: Candidate, place: Mapping[fx.Node, int], replaced: dict[fx.Node, fx.Node]
) -> fx.Node:
    """Add the fused op before the first of its outputs and note what stands for each node that held one."""
    match, inputs = candidate.site.match, candidate.site.inputs
    _, arguments = match.call()
    names = [argument.name for argument in candidate.op._schema.arguments]
    values = tuple(inputs.get(name) if _is_tensor(arg) else arg for name, arg in zip(names, arguments, strict=True))
    held = candidate.site.cone.outputs
    with graph.inserting_before(min((node for nodes in held for node in nodes), key=place.__getitem__)):
        fused = graph.call_function(candidate.op, values)
        made = fused.meta[RESULTS] = _results(graph, fused, candidate)
        for new, nodes in zip(made, held, strict=True):
            new.meta.setdefault("val", nodes[0].meta["val"])
            replaced[nodes[0]] = new
            for other in nodes[1:]:
                replaced[other] = _twin(graph, new, other)
    anchor = match.anchor.node or held[0][0]
    fused.meta.update({key: anchor.meta[key] for key in _PROVENANCE if key in anchor.meta})
    fused.meta["val"] = None if is_write(fused) else _value([nodes[0].meta["val"] for nodes in held])
    fused.meta[SITE] = candidate
    return fused


def _results(graph: fx.Graph, fused: fx.Node, candidate: Candidate) -> list[fx.Node]:
    """The nodes that hold what the op makes; of one that writes in place, what it wrote, by another name.

    That name is read after the op, although no data flows from the one to the other.
    """
    outputs = len(candidate.site.cone.outputs)
    if is_write(fused):
        updated = candidate.site.inputs[str(candidate.site.match.pattern.updates)]
        return [graph.call_function(torch.ops.aten.alias.default, (updated,))]
    return [fused] if outputs == 1 else [_item(graph, fused, index) for index in range(outputs)]


def _redirect(candidate: Candidate, replaced: Mapping[fx.Node, fx.Node], keep_originals: bool) -> None:
    """Let every reader of an output read the fused op's; what vanishes with the site keeps its own."""
    inside = candidate.site.cone.nodes if keep_originals else candidate.footprint.owned
    for nodes in candidate.site.cone.outputs:
        for node in nodes:
            node.replace_all_uses_with(replaced[node], delete_user_cb=lambda user: user not in inside)


def _twin(graph: fx.Graph, new: fx.Node, other: fx.Node) -> fx.Node:
    """The same value a second time: a copy where the graph hands it out, since it may be written there."""
    if not any(user.op == "output" or is_write(user) for user in other.users):
        return new
    copy = graph.call_function(torch.ops.aten.clone.default, (new,))
    copy.meta["val"] = other.meta["val"]
    return copy


def _item(graph: fx.Graph, fused: fx.Node, index: int) -> fx.Node:
    return graph.call_function(operator.getitem, (fused, index))


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, Term)


def _value(vals: list[Any]) -> Any:
    return vals[0] if len(vals) == 1 else tuple(vals)


def restore_order(graph: fx.Graph, kept: Iterable[tuple[fx.Node, fx.Node]] = ()) -> None:
    """Sort topologically, keeping the captured order wherever the edges allow it, and the pairs in any case."""
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    pairs = [(before, after) for before, after in kept if before in place and after in place]
    edges = itertools.chain(pairs, ((source, node) for node in nodes for source in node.all_input_nodes))
    if all(place[before] < place[after] for before, after in edges):
        return
    followers: dict[fx.Node, list[fx.Node]] = {node: list(node.users) for node in nodes}
    for before, after in pairs:
        followers[before].append(after)
    waiting = dict.fromkeys(nodes, 0)
    for follower in itertools.chain.from_iterable(followers.values()):
        waiting[follower] += 1
    ready = [place[node] for node in nodes if not waiting[node]]
    heapq.heapify(ready)
    last: fx.Node | None = None
    while ready:
        node = nodes[heapq.heappop(ready)]
        if last is not None:
            last.append(node)
        last = node
        for user in followers[node]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, place[user])
