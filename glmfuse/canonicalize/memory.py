"""Which nodes of a captured graph look at the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from glmfuse.canonicalize.schema import is_view, is_write


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


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The users of a tensor, and of all that looks on it."""
    holders = {node: None}
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if not looks_on(user):
                yield user
            elif user not in holders:
                holders[user] = None
                stack.append(user)


def is_kept(node: fx.Node) -> bool:
    """Whether a tensor's memory is handed out by the graph, or written in it."""
    return any(user.op == "output" or is_write(user) for user in readers(node))
