"""Of what inlining put in, equal values are computed once: the mask of all layers, their cos and sin."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import fx

from glmfuse.canonicalize import typed
from glmfuse.canonicalize.schema import is_pure, is_view, is_write, written_arguments


def share(graph: fx.Graph, made: Collection[fx.Node]) -> None:
    """Let one node stand for all of `made` that call one operator with the same arguments.

    Captured nodes are left alone, as is whatever a write may reach and whatever is handed out.
    """
    candidates = set(made)
    written = _written(graph)
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node not in candidates or not _may_be_shared(node, written):
            continue
        known = first.setdefault(_key(node), node)
        if known is not node:
            node.replace_all_uses_with(known)
            graph.erase_node(node)


def _may_be_shared(node: fx.Node, written: set[fx.Node]) -> bool:
    if not is_pure(node.target, node.args, node.kwargs) or any(user.op == "output" for user in node.users):  # type: ignore[arg-type]
        return False
    return node not in written and not any(source in written for source in node.all_input_nodes)


def _key(node: fx.Node) -> Any:
    return node.target, _typed(node.args), tuple((name, _typed(value)) for name, value in sorted(node.kwargs.items()))


def _typed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_typed(item) for item in value)
    return value if isinstance(value, fx.Node) else typed(value)


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Every node that may hold memory which the graph writes."""
    roots = {root for node in graph.nodes if is_write(node) for root in _roots(node)}
    found = set(roots)
    for node in graph.nodes:
        if node.op == "call_function" and (is_view(node.target) or is_write(node)) and found & {*node.all_input_nodes}:
            found.add(node)
    return found


def _roots(write: fx.Node) -> Iterator[fx.Node]:
    """What lies under the tensors that a node writes."""
    stack = [write.args[index] for index in written_arguments(write.target)]  # type: ignore[arg-type]
    while stack:
        node = stack.pop()
        if not isinstance(node, fx.Node):
            continue
        if node.op == "call_function" and is_view(node.target):  # type: ignore[arg-type]
            stack.extend(node.all_input_nodes)
        else:
            yield node
