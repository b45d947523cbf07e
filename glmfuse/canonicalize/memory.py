"""Which nodes of a captured graph look at the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from glmfuse.canonicalize.schema import is_view, is_write, written_arguments


def looks_on(node: fx.Node) -> bool:
    """Whether a node's result lies in the memory of its first argument: a view, `_unsafe_view` included."""
    if node.op != "call_function" or is_write(node) or not node.all_input_nodes:
        return False
    return is_view(node.target) or node.target is torch.ops.aten._unsafe_view.default  # type: ignore[arg-type]


def origin(node: fx.Node) -> fx.Node:
    """What a chain of views looks on."""
    while looks_on(node):
        node = node.all_input_nodes[0]
    return node


def uses(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """A tensor and all that looks on it, each with its users."""
    holders = {node: None}
    stack = [node]
    while stack:
        holder = stack.pop()
        for user in holder.users:
            if not looks_on(user):
                yield holder, user
            elif user not in holders:
                holders[user] = None
                stack.append(user)


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The users of a tensor, and of all that looks on it."""
    return (user for _, user in uses(node))


def is_kept(node: fx.Node) -> bool:
    """Whether a tensor's memory is handed out by the graph, or written in it."""
    return any(user.op == "output" or holder in written_by(user) for holder, user in uses(node))


def written_by(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node writes in place."""
    if not is_write(node):
        return []
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    found = (given.get(names[place]) for place in written_arguments(node.target))  # type: ignore[arg-type]
    return [argument for argument in found if isinstance(argument, fx.Node)]
