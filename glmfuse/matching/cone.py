"""The captured nodes behind a match: everything between the nodes it reads and the nodes it makes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from glmfuse.canonicalize import Canonical, Term
from glmfuse.matching.match import Match


@dataclass(frozen=True, slots=True, eq=False)
class Cone:
    """nodes: what computes the outputs from the inputs. reads: for each input term, the node read.

    outputs: for each output of the pattern, the nodes that hold it (several where the graph computes it
    several times). strays: nodes reached that no input of the match accounts for. idle: nodes that leave one
    of their inputs as it is, and those that nothing else depends on.
    """

    nodes: frozenset[fx.Node]
    reads: Mapping[Term, fx.Node]
    outputs: tuple[tuple[fx.Node, ...], ...]
    strays: tuple[fx.Node, ...]
    idle: frozenset[fx.Node]


def cone_of(
    canonical: Canonical, match: Match, outputs: tuple[tuple[fx.Node, ...], ...], position: Mapping[fx.Node, int]
) -> Cone:
    """Walk back from the nodes that hold the outputs, stopping at what holds an input."""
    inputs = {term for term in match.inputs.values() if term is not None}
    nodes: set[fx.Node] = set()
    reads: dict[Term, fx.Node] = {}
    strays: list[fx.Node] = []
    stack = [node for held in outputs for node in held]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for source in tensor_inputs(node):
            term = canonical.term_of[source]
            if term in inputs:
                known = reads.setdefault(term, source)
                reads[term] = min(known, source, key=position.__getitem__)
            elif source.op != "call_function":
                strays.append(source)
            else:
                stack.append(source)
    held = [node for each in outputs for node in each]
    return Cone(frozenset(nodes), reads, outputs, tuple(strays), idle_nodes(canonical, nodes, held))


def idle_nodes(canonical: Canonical, nodes: Collection[fx.Node], outputs: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """Of these nodes, those that leave an input as it is, and those that no output then depends on."""
    reached: set[fx.Node] = set()
    busy: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node in reached or node not in nodes:
            continue
        reached.add(node)
        same = [source for source in tensor_inputs(node) if canonical.term_of[source] is canonical.term_of[node]]
        if not same:
            busy.add(node)
        stack.extend(same or tensor_inputs(node))
    return frozenset(set(nodes) - busy)


def tensor_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that a node reads tensors from; sizes are always at hand."""
    for source in node.all_input_nodes:
        if not isinstance(source.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
            yield source
