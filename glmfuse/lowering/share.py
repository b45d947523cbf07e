"""Of what inlining put in, equal values are computed once: the mask of all layers, their cos and sin."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from glmfuse.canonicalize import typed
from glmfuse.canonicalize.memory import is_kept, origin, written_by
from glmfuse.canonicalize.schema import is_pure, is_write


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
    if not is_pure(node.target, node.args, node.kwargs) or is_kept(node):  # type: ignore[arg-type]
        return False
    return not any(origin(source) in written for source in node.all_input_nodes)


def _key(node: fx.Node) -> Any:
    return node.target, _typed(node.args), tuple((name, _typed(value)) for name, value in sorted(node.kwargs.items()))


def _typed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_typed(item) for item in value)
    return value if isinstance(value, fx.Node) else typed(value)


def _written(graph: fx.Graph) -> set[fx.Node]:
    """What lies under the tensors that the graph writes, and what these writes return."""
    writes = [node for node in graph.nodes if is_write(node)]
    return {*writes, *(origin(argument) for write in writes for argument in written_by(write))}
