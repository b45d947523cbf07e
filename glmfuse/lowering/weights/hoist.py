"""Taking the values that depend on weights alone out of a graph: they become inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from glmfuse.canonicalize.memory import is_kept, origin
from glmfuse.canonicalize.schema import is_pure, is_write

SHARE: Final = 0.02
"""The most memory for derived values, as a share of the weights'."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A value made of weights. sources: their places among the graph's arguments; key: the same for equal code."""

    compute: Callable[..., torch.Tensor]
    sources: tuple[int, ...]
    key: str
    fake: torch.Tensor

    @property
    def bytes(self) -> int:
        """Memory that the value takes."""
        return self.fake.nbytes


def hoist(module: fx.GraphModule, weights: Collection[int]) -> tuple[tuple[Derived, ...], int]:
    """Make each such value an argument after the others; what was made of the graph, and how many did not fit.

    weights: the places of the weights among the arguments. Values that a call hands out or writes stay, as
    does what exceeds SHARE of the weights' memory.
    """
    graph = module.graph
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    held = {arguments[place] for place in weights if not any(is_write(user) for user in arguments[place].users)}
    room = SHARE * sum(node.meta["val"].nbytes for node in held)
    derived: list[Derived] = []
    last, left = arguments[-1], 0
    for node in _frontier(graph, _constants(graph, held)):
        made = _derive(node, arguments)
        if made.bytes > room:
            left += 1
            continue
        room -= made.bytes
        derived.append(made)
        last = _replace(graph, node, last, made)
    graph.lint()
    module.recompile()
    return tuple(derived), left


def _constants(graph: fx.Graph, weights: Collection[fx.Node]) -> dict[fx.Node, None]:
    """Nodes that depend on weights and on nothing else, in order."""
    found = dict.fromkeys(weights)
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload) or node in found:
            continue
        sources = node.all_input_nodes
        if sources and all(source in found for source in sources) and is_pure(node.target, node.args, node.kwargs):
            found[node] = None
    return {node: None for node in found if node.op == "call_function"}


def _frontier(graph: fx.Graph, constants: Collection[fx.Node]) -> list[fx.Node]:
    """Of these, what the rest of the graph reads, views seen through; nothing that is handed out or written."""
    read: dict[fx.Node, None] = {}
    for node in constants:
        is_read = any(user not in constants for user in node.users)
        if is_read and (source := origin(node)) in constants:
            read[source] = None
    return [node for node in graph.nodes if node in read and not is_kept(node)]


def _derive(node: fx.Node, arguments: Sequence[fx.Node]) -> Derived:
    """The code between the weights and the node, as a function of these weights."""
    needed = _ancestors(node)
    sources = [place for place, argument in enumerate(arguments) if argument in needed]
    body = fx.Graph()
    copies = {arguments[place]: body.placeholder(f"weight_{rank}") for rank, place in enumerate(sources)}
    for item in node.graph.nodes:
        if item in needed and item not in copies:
            copies[item] = body.node_copy(item, copies.__getitem__)
    body.output(copies[node])
    compute = fx.GraphModule({}, body)
    fakes = [arguments[place].meta["val"] for place in sources]
    with next(fake.fake_mode for fake in fakes if isinstance(fake, FakeTensor)):
        fake = compute(*fakes)
    return Derived(compute, tuple(sources), compute.code, fake)


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is made of."""
    found = [node]
    for item in found:
        found.extend(source for source in item.all_input_nodes if source not in found)
    return set(found)


def _replace(graph: fx.Graph, node: fx.Node, last: fx.Node, made: Derived) -> fx.Node:
    """Read a new argument, placed after the last one, instead of the node; what is idle then goes."""
    with graph.inserting_after(last):
        argument = graph.placeholder(f"derived_{node.name}")
    argument.meta["val"] = made.fake
    node.replace_all_uses_with(argument)
    dead = [node]
    while dead:
        item = dead.pop()
        if item.op == "call_function" and not item.users:
            dead.extend(item.all_input_nodes)
            graph.erase_node(item)
    return argument
