"""Finding a search graph around an anchor: backtracking over definitions, commuted operands, and users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from glmfuse.canonicalize import INPUT, Op, Term, describe_op
from glmfuse.matching.index import Definition, Index
from glmfuse.matching.match import Finding, Match, Mismatch
from glmfuse.matching.search import Capture, Free, Literal, SearchGraph, Spec
from glmfuse.report.stage import Stage

Todo = tuple[tuple[Term, Any], "Todo"] | None
COMMUTATIVE = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor})


def match_at(index: Index, graph: SearchGraph, anchor: Term, at: Definition) -> Match | Mismatch:
    """The occurrence of the search graph whose `anchor` is this definition, or how near it came."""
    attempt = _Attempt(index, graph)
    if attempt.start(anchor, at):
        return attempt.found(at.value)
    return attempt.missed(at.value)


def match_outputs(index: Index, graph: SearchGraph, found: Match) -> Mismatch | None:
    """Hold a graph against a match already found, arguments and outputs given; None when it is the same."""
    attempt = _Attempt(index, graph)
    for name, term in graph.inputs.items():
        attempt.bound[term] = found.inputs[name]
    todo: Todo = None
    for mine, value in zip(graph.outputs, found.outputs, strict=True):
        todo = ((mine, value), todo)
    return None if attempt.solve(todo) else attempt.missed(found.anchor)


@dataclass(slots=True)
class _Attempt:
    index: Index
    graph: SearchGraph
    bound: dict[Term, Any] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    used: dict[Any, Definition] = field(default_factory=dict)
    depth: int = -1
    miss: tuple[str, Term | None, Any, Any, Any] = ("nothing", None, None, None, None)
    reached: frozenset[Term] = frozenset()

    def start(self, anchor: Term, at: Definition) -> bool:
        return self.define(anchor, at, None)

    def solve(self, todo: Todo) -> bool:
        """Make every (pattern term, value) pair of the list hold, then grow to what is not bound yet."""
        if todo is None:
            return self.grow()
        (mine, value), rest = todo
        if mine in self.bound:
            return (self.bound[mine] is value and self.solve(rest)) or self.fail("other value", mine, value)
        if mine.op is INPUT:
            return self.bind_input(mine, value, rest)
        if value in self.used:
            return self.fail("used twice", mine, value)
        definitions = self.index.definitions.get(value, ())
        if any(self.define(mine, definition, rest) for definition in definitions if definition.term.op is mine.op):
            return True
        return self.fail("operator", mine, value) if all(d.term.op is not mine.op for d in definitions) else False

    def bind_input(self, mine: Term, value: Any, rest: Todo) -> bool:
        if value is None and not self.may_be_none(self.graph.name_of[mine]):
            return self.fail("operator", mine, value)
        self.bound[mine] = value
        if self.solve(rest):
            return True
        del self.bound[mine]
        return False

    def may_be_none(self, name: str) -> bool:
        """Whether the variant takes None there; one that has its own variant without it does not."""
        pattern = self.graph.pattern
        return pattern.parameter(name).optional and name not in pattern.structural

    def define(self, mine: Term, definition: Definition, rest: Todo) -> bool:
        self.bound[mine] = definition.value
        self.used[definition.value] = definition
        for args in _orders(definition.term):
            before = dict(self.scalars)
            todo = self.unify_all(mine, self.graph.specs[mine], args, rest)
            if todo is not False and self.solve(todo):
                return True
            self.scalars = before
        del self.bound[mine], self.used[definition.value]
        return False

    def unify_all(self, mine: Term, specs: tuple[Spec, ...], args: tuple[Any, ...], rest: Todo) -> Any:
        """The list with what these arguments demand put in front, or False."""
        if len(specs) != len(args):
            return self.fail("arguments", mine, args, specs)
        for spec, arg in zip(reversed(specs), reversed(args), strict=True):
            rest = self.unify(mine, spec, arg, rest)
            if rest is False:
                return False
        return rest

    def unify(self, mine: Term, spec: Spec, arg: Any, rest: Any) -> Any:
        if isinstance(spec, Term):
            is_value = isinstance(arg, Term) or (arg is None and spec.op is INPUT)
            return ((spec, arg), rest) if is_value else self.fail("argument", mine, arg, spec)
        if isinstance(spec, tuple):
            if not isinstance(arg, tuple):
                return self.fail("arguments", mine, arg, spec)
            return self.unify_all(mine, spec, arg, rest)
        if isinstance(spec, Capture):
            return rest if self.capture(spec.name, arg) else self.fail("argument", mine, arg, spec)
        if isinstance(spec, Free):
            return rest if self.free(spec, arg) else self.fail("argument", mine, arg, spec)
        expected = spec.value if isinstance(spec, Literal) else None
        return rest if equal(expected, arg) else self.fail("argument", mine, arg, spec)

    def free(self, spec: Free, arg: Any) -> bool:
        if isinstance(arg, Term):
            return False
        return all(
            isinstance(arg, tuple) and position < len(arg) and self.capture(name, arg[-1 - position])
            for position, name in spec.captured
        )

    def capture(self, name: str, value: Any) -> bool:
        kind = self.graph.pattern.parameter(name).kind
        kinds = ("float", "int") if kind == "float" else (kind,)  # x * 2 is a scale of 2, written as an int
        if type(value).__name__ not in kinds:
            return False
        if name in self.scalars:
            return equal(self.scalars[name], value)
        self.scalars[name] = value
        return True

    def grow(self) -> bool:
        """Go on to an unbound term that uses a bound one; of these the one with the fewest candidates."""
        best: tuple[Term, list[Definition]] | None = None
        for mine in self.graph.terms:
            if mine in self.bound:
                continue
            for source in self.graph.sources[mine]:
                value = self.bound.get(source)
                if value is None:
                    continue
                users = self.index.users.get(value, ())
                found = [user for user in users if user.term.op is mine.op and user.value not in self.used]
                if best is None or len(found) < len(best[1]):
                    best = (mine, found)
        if best is None:
            return True
        mine, found = best
        return any(self.define(mine, definition, None) for definition in found) or self.fail("no user", mine, None)

    def fail(self, code: str, mine: Term, found: Any, spec: Any = None) -> bool:
        if len(self.used) > self.depth:
            self.depth, self.miss = len(self.used), (code, mine, found, spec, self.bound.get(mine))
            self.reached = frozenset(self.used)
        return False

    def found(self, anchor: Term) -> Match:
        graph = self.graph
        names = {name: self.bound.get(term) for name, term in graph.inputs.items()}
        inputs = {p.name: names.get(p.name) for p in graph.pattern.parameters if p.is_tensor}
        around = {self.bound[term] for term in graph.around}
        inner = {value: definition for value, definition in self.used.items() if value not in around}
        return Match(
            pattern=graph.pattern,
            variant=graph.variant,
            anchor=anchor,
            inputs=inputs,
            scalars={**self.scalars, **dict(graph.variant.flags)},
            outputs=tuple(self.bound[output] for output in graph.outputs),
            inner=frozenset(inner),
            parts=tuple(dict.fromkeys(d.match for d in inner.values() if d.match is not None)),
        )

    def missed(self, anchor: Term) -> Mismatch:
        code, mine, found, spec, near = self.miss

        def explain() -> Finding:
            return _put_into_words(code, mine, found, spec, near, anchor)

        is_whole = code not in ("argument", "arguments")
        return Mismatch(
            pattern=self.graph.pattern,
            anchor=anchor,
            stage=Stage.STRUCTURE,
            matched=max(self.depth - (not is_whole), 0),
            total=len(self.graph.terms),
            explain=explain,
            nodes=self.reached,
            wants=mine.op if mine is not None and code == "operator" else None,
            at=found if isinstance(found, Term) else None,
        )


def equal(expected: Any, found: Any) -> bool:
    """Equality of literals, by type and value; symbolic sizes by their expressions."""
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(equal(a, b) for a, b in zip(expected, found, strict=True))
    if isinstance(expected, sympy.Expr) and isinstance(found, sympy.Expr):
        return expected == found or sympy.expand(expected - found) == 0
    if isinstance(expected, float) and isinstance(found, float):
        return repr(expected) == repr(found)  # tells 0.0 from -0.0, and knows NaN
    return type(expected) is type(found) and bool(expected == found)


def _orders(term: Term) -> Iterator[tuple[Any, ...]]:
    yield term.args
    first, second, *rest = term.args if len(term.args) > 1 else (None, None)
    if term.op in COMMUTATIVE and isinstance(first, Term) and isinstance(second, Term) and all(x == 1 for x in rest):
        yield (second, first, *rest)


def _put_into_words(code: str, mine: Term | None, found: Any, spec: Any, near: Any, anchor: Term) -> Finding:
    node = next((term.node for term in (found, near, anchor) if isinstance(term, Term) and term.node), None)
    op: Op | None = mine.op if mine is not None else None
    name = "" if op is None else "a tensor" if op is INPUT else describe_op(op)
    if code in ("argument", "arguments"):
        return Finding("argument", f"{name} with {_describe(spec)}", _describe(found), node)
    if code == "no user":
        return Finding("no user", f"a use by {name}", "no such use", node)
    if code in ("other value", "used twice"):
        return Finding("wiring", f"{name}: {'the same value' if code == 'other value' else 'another value'} here",
                       _describe(found), node)  # fmt: skip
    return Finding("operator", name, _describe(found), node)


def _describe(value: Any) -> str:
    if isinstance(value, Term):
        return "a tensor" if value.op is INPUT and value.node is None else str(value)
    if isinstance(value, Literal):
        return str(value.value)
    if isinstance(value, Capture):
        return f"{value.name}, the same everywhere in the site"
    if isinstance(value, Free):
        return "a literal" + "".join(f", {name} from the end {place}" for place, name in value.captured)
    if isinstance(value, tuple):
        return f"({', '.join(_describe(item) for item in value)})"
    return str(value)
