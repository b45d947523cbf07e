"""Putting aten graphs in the place of fused ops, so that the engine compiles them with all the rest."""

from __future__ import annotations

from torch import fx

from glmfuse.matching.rewrite import SITE
from glmfuse.matching.select import Candidate


def inline(graph: fx.Graph, fused: list[fx.Node]) -> list[fx.Node]:
    """Put its body in place of each fused node whose target has one; the nodes that came in."""
    made: list[fx.Node] = []
    for node in fused:
        candidate: Candidate = node.meta[SITE]
        if candidate.body is not None:
            made += _inline(graph, node, candidate, candidate.body.graph)
    graph.lint()
    return made


def _inline(graph: fx.Graph, node: fx.Node, candidate: Candidate, body: fx.Graph) -> list[fx.Node]:
    values: dict[fx.Node, fx.Node] = {}
    made: list[fx.Node] = []
    names = iter(candidate.site.trace.tensors)
    parameters = (argument.name for argument in candidate.op._schema.arguments)
    arguments = dict(zip(parameters, node.args, strict=True))
    results: tuple[fx.Node, ...] = ()
    with graph.inserting_before(node):
        for inner in body.nodes:
            if inner.op == "placeholder":
                values[inner] = arguments[next(names)]  # type: ignore[assignment]
            elif inner.op == "output":
                results = tuple(values[value] for value in inner.args[0])
            else:
                values[inner] = _copy(graph, inner, values, node)
                made.append(values[inner])
    _replace(graph, node, results)
    return made


def _copy(graph: fx.Graph, inner: fx.Node, values: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    made = graph.node_copy(inner, values.__getitem__)
    made.meta = {key: value for key, value in node.meta.items() if key not in ("val", SITE)}
    return made


def _replace(graph: fx.Graph, node: fx.Node, results: tuple[fx.Node, ...]) -> None:
    vals = node.meta["val"] if isinstance(node.meta["val"], tuple) else (node.meta["val"],)
    for result, val in zip(results, vals, strict=True):
        result.meta["val"] = val
    if len(results) == 1:
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    graph.erase_node(node)
