"""From a captured graph to its canonical terms, with the way back to the captured nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.rules import rules_for
from glmfuse.canonicalize.schema import full_arguments, is_function_of_values, is_pure, is_view, written_arguments
from glmfuse.canonicalize.term import AFTER, INPUT, Arg, Op, Term, size_of


@dataclass(frozen=True, slots=True)
class Canonical:
    """A graph as terms.

    terms: every live or dead value in the order of the graph, shared by equal values.
    term_of: the term of each captured node. members: the captured nodes of each term, in order.
    """

    graph: fx.Graph
    terms: tuple[Term, ...]
    term_of: Mapping[fx.Node, Term]
    members: Mapping[Term, tuple[fx.Node, ...]]
    outputs: tuple[Arg, ...]

    def sources(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """Of nodes that hold one value, those that copy and view no other of them."""
        held = dict.fromkeys(nodes)

        def copies(node: fx.Node) -> bool:
            chain = [node]
            for link in chain:
                same = [source for source in link.all_input_nodes if self.term_of.get(source) is self.term_of[node]]
                if any(source in held for source in same):
                    return True
                chain.extend(same)
            return False

        return tuple(node for node in held if not copies(node))

    def __str__(self) -> str:
        names = {term: f"%{index}" for index, term in enumerate(self.terms)}
        return "\n".join(f"{names[term]} = {_show(term, names)}" for term in self.terms)


def canonicalize(graph: fx.Graph) -> Canonical:
    """Value-number the graph through the rules; needs `meta["val"]` on every node."""
    build = _Build()
    for node in graph.nodes:
        build.add(node)
    return build.finish(graph)


@dataclass(slots=True)
class _Build:
    terms: list[Term] = field(default_factory=list)
    term_of: dict[fx.Node, Term] = field(default_factory=dict)
    shared: dict[Any, Term] = field(default_factory=dict)
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    written: dict[fx.Node, int] = field(default_factory=dict)
    outputs: tuple[Arg, ...] = ()

    def __call__(self, op: Op, args: tuple[Arg, ...], val: Any, node: fx.Node | None = None) -> Term:
        for rule in rules_for(op):
            if (term := rule(self, args, val)) is not None:
                return term
        key = (op, typed(args)) if is_function_of_values(op, args) or op is AFTER else None
        term = self.shared.get(key) if key is not None else None
        if term is None:
            term = Term(op, args, val, node, len(self.terms))
            self.terms.append(term)
            if key is not None:
                self.shared[key] = term
        return term

    def known(self, op: Op, args: tuple[Arg, ...]) -> Term | None:
        return self.shared.get((op, typed(args)))

    def add(self, node: fx.Node) -> None:
        if node.op == "output":
            self.outputs = self.argument(node.args[0])
        elif node.op != "call_function":
            self.define(node, Term(INPUT, (node.name,), node.meta.get("val"), node, len(self.terms)), new=True)
        else:
            self.call(node)

    def call(self, node: fx.Node) -> None:
        op: Any = node.target
        args = self.argument(node.args)
        kwargs = {name: self.argument(value) for name, value in node.kwargs.items()}
        before = len(self.terms)
        term = self(op, full_arguments(op, args, kwargs, node.meta.get("val")), node.meta.get("val"), node)
        for made in self.terms[before:]:
            made.node = made.node or node
        self.define(node, term)
        self.storage[node] = self.storage_of(node.args[0]) if is_view(op) and node.args else node
        if isinstance(op, OpOverload):
            for position in written_arguments(op):
                self.write(node.args[position] if position < len(node.args) else None, len(self.terms))
        elif not is_pure(op, args) and not isinstance(op, torch._ops.HigherOrderOperator):
            for known in list(self.storage.values()):
                self.write(known, len(self.terms))

    def define(self, node: fx.Node, term: Term, new: bool = False) -> None:
        if new:
            self.terms.append(term)
            self.storage[node] = node
        self.term_of[node] = term

    def storage_of(self, value: Any) -> fx.Node | Any:
        return self.storage.get(value, value) if isinstance(value, fx.Node) else value

    def write(self, value: Any, epoch: int) -> None:
        if isinstance(value, fx.Node):
            self.written[self.storage_of(value)] = epoch

    def argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.read(value)
        if isinstance(value, (list, tuple)):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, torch.SymInt):
            return size_of(value)
        return value

    def read(self, node: fx.Node) -> Arg:
        val = node.meta.get("val")
        if isinstance(val, torch.SymInt):
            return size_of(val)
        if isinstance(val, torch.SymFloat):
            return val.node.expr
        term = self.term_of[node]
        epoch = self.written.get(self.storage.get(node, node))
        return term if epoch is None else self(AFTER, (term, epoch), val, node)

    def finish(self, graph: fx.Graph) -> Canonical:
        members: dict[Term, list[fx.Node]] = {}
        for node, term in self.term_of.items():
            members.setdefault(term, []).append(node)
        frozen = {term: tuple(nodes) for term, nodes in members.items()}
        return Canonical(graph, tuple(self.terms), self.term_of, frozen, self.outputs)


def typed(arg: Arg) -> Any:
    """A key that tells constants apart by type and sign: 1, 1.0 and True are three, 0.0 and -0.0 are two."""
    if isinstance(arg, tuple):
        return tuple(typed(item) for item in arg)
    return arg if isinstance(arg, Term) else (type(arg), repr(arg) if isinstance(arg, float) else arg)


def _show(term: Term, names: Mapping[Term, str]) -> str:
    def show(arg: Arg) -> str:
        if isinstance(arg, Term):
            return names.get(arg, "?")
        return f"({', '.join(show(item) for item in arg)})" if isinstance(arg, tuple) else str(arg)

    return f"{term} ({', '.join(show(arg) for arg in term.args)})"
