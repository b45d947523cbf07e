"""Which nodes must keep their order although no data flows between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from glmfuse.canonicalize.memory import written_by
from glmfuse.canonicalize.schema import is_pure, is_view, is_write


def kept_order(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(before, after): draws and writes among each other, and a write with the reads of what it writes."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    last: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "call_function" and not is_pure(node.target, node.args, node.kwargs):
            if last is not None:
                yield last, node
            last = node
        if is_write(node):
            yield from _reads_around(node, position)


def _reads_around(write: fx.Node, position: Mapping[fx.Node, int]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What must read a tensor, or a view of it, before this node writes it, and what after that."""
    aliases = written_by(write)
    for alias in aliases:
        for user in alias.users:
            if position[user] < position[write]:
                yield user, write
                if is_view(user.target):  # type: ignore[arg-type]
                    aliases.append(user)
            elif user is not write:
                yield write, user
