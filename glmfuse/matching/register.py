"""`@pattern`: read the declaration, trace it, and make its ops. Whatever is wrong with it shows here."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from glmfuse.canonicalize import INPUT, Term
from glmfuse.errors import PatternError
from glmfuse.matching.context import Context
from glmfuse.matching.declared import a_variant, check_scalars, check_traced, try_trace
from glmfuse.matching.examples import EXAMPLE_DTYPE, trace_in_context, variants, variants_with
from glmfuse.matching.pattern import (
    NAMESPACE,
    Case,
    Parameter,
    Pattern,
    Variant,
    _where,
    read_parameters,
    schema,
)
from glmfuse.matching.reference import fake_function, reference_function
from glmfuse.matching.traced import Traced

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_REGISTERED: dict[str, Pattern] = {}
_OWN = "glmfuse.patterns."


def pattern(
    *,
    dims: Mapping[str, str],
    together: Iterable[str] = (),
    examples: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {}),
    cases: tuple[Case, ...] = ({},),
    dtypes: Mapping[str, torch.dtype] | None = None,
    unordered: int = 0,
    updates: str | None = None,
    carried: Iterable[str] = (),
    context: Mapping[str, Callable[..., Any]] | None = None,
    holds: Iterable[torch.dtype] = (),
) -> Callable[[Callable[..., Any]], Pattern]:
    """Make a pattern, and its ops `torch.ops.glmfuse.<name>`, of a PyTorch function.

    dims: the sizes of each tensor argument, `{"x": "... H", "w": "O H"}`, and, where an int argument is a size, its
    symbol. together: optional tensors that come and go as one, `("w_q_norm w_k_norm",)`. examples: sizes for the
    two traces where the function does not take any. cases: sizes, and dtypes of tensors, at which it is another
    graph, `({}, {"P": 0}, {"w": torch.float32})`; {"...": 1} is one leading dimension. dtypes: those of tensors
    that never have it. unordered: of how many outputs, the first ones, kernels may permute the last axis, of all
    alike. updates: the tensor argument whose new value is the one output, so that kernels may write it in place.
    carried: optional tensors that no result depends on, for spellings whose operators are given them all the same.
    context: `{"rows per_token": function}`, tensor arguments that a function makes of others wherever the pattern is;
    it is looked for behind that function, which its sites do not contain, and `function`'s arguments need not be read.
    holds: dtypes without which no graph has it, so that it costs other models nothing. Raises PatternError, with
    the line, when the function is no pattern. glmfuse's own are traced when someone asks: its tests hold them, and a
    command that compiles nothing does without the seconds that it takes.
    """

    def register(function: Callable[..., Any]) -> Pattern:
        name = function.__name__
        made = Pattern(
            name=name,
            function=function,
            parameters=read_parameters(name, function, dims),
            together=tuple(tuple(names.split()) for names in together),
            examples=examples,
            cases=cases,
            dtypes=dict(dtypes or {}),
            where=_where(function),
            unordered=unordered,
            updates=updates,
            carried=frozenset(carried),
            context=_context(name, function, context),
            holds=frozenset(holds),
        )
        if name in _REGISTERED:
            raise PatternError(name, made.where, "a pattern of this name is registered already")
        _trace(made, _define, function)
        _REGISTERED[name] = made
        return made

    return register


def _context(name: str, function: Callable[..., Any], given: Mapping[str, Callable[..., Any]] | None) -> Context | None:
    if not given:
        return None
    ((names, made_by),) = given.items()
    context, own = Context(tuple(names.split()), made_by), inspect.signature(function).parameters
    if strangers := sorted({*context.names, *context.reads} - set(own)):
        raise PatternError(name, _where(function), f"context= names {strangers}, which are not arguments")
    return context


def _trace(made: Pattern, step: Callable[[Pattern], None], function: Callable[..., Any]) -> None:
    """Take a step that traces this function, or put it off where it is one of glmfuse's own."""
    if function.__module__.startswith(_OWN):
        made.postponed += (step,)
    else:
        step(made)


def spelling_of(made: Pattern) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function another spelling of a pattern: the same function of the same arguments.

    Its graphs are found as sites of the pattern, and proven against it. What holds of the pattern's own
    function only in exact arithmetic is for targets to use; the reference keeps the operators of the
    spelling that it found. Arguments that the spelling does not take it refuses by `require`. Raises
    PatternError, with the line, when it takes other arguments or does not trace.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name, where = function.__name__, _where(function)
        if list(inspect.signature(function).parameters) != [p.name for p in made.parameters]:
            raise PatternError(made.name, where, f"its spelling {name!r} must take the pattern's arguments")
        if name in made.spellings:
            raise PatternError(made.name, where, f"a spelling {name!r} is registered already")
        made.spellings[name] = function
        try:
            _trace(made, lambda traced: _check_spelling(traced, name, where), function)
        except PatternError:
            del made.spellings[name]
            raise
        return function

    return register


def _check_spelling(made: Pattern, name: str, where: str) -> None:
    spelled = [variant for absent in made.overloads for variant in variants_with(made, absent, name)]
    if not spelled:
        raise PatternError(made.name, where, f"its spelling {name!r} takes no arguments of the pattern")
    for variant in spelled:
        _read_calls(made, variant)
        check_scalars(made, variant)


def _define(made: Pattern) -> None:
    traced = try_trace(made, a_variant(made, frozenset()))
    check_traced(made, traced)
    groups = _groups(made)
    structural = [group for group in groups if not _is_passed_on(made, traced, group)]
    passed_on = frozenset(itertools.chain(*groups)) - frozenset(itertools.chain(*structural))
    for size in range(len(structural) + 1):
        for chosen in itertools.combinations(structural, size):
            absent = frozenset(itertools.chain(*chosen))
            present = "_".join(group[0] for group in structural if group not in chosen)
            if absent not in made.known.overloads:
                made.known.overloads[absent] = _make_op(made, absent, present, passed_on)
    for variant in variants(made):
        _read_calls(made, variant)
        check_scalars(made, variant)


def _read_calls(made: Pattern, variant: Variant) -> None:
    """Note which patterns a variant calls, and which stand around it."""
    traced = [try_trace(made, variant), trace_in_context(made, variant, EXAMPLE_DTYPE, 0)]
    terms = [term for each in traced for term in each.live()]
    ops = [term.op for term in terms if isinstance(term.op, OpOverload) and term.op.namespace == NAMESPACE]
    called = [_REGISTERED[op._schema.name.partition("::")[2]] for op in ops]
    made.known.calls |= frozenset(inner.name for inner in called)
    made.known.level = max([made.known.level, *(inner.level + 1 for inner in called)])


def _groups(made: Pattern) -> list[tuple[str, ...]]:
    grouped = set(itertools.chain(*made.together))
    optional = {p.name for p in made.parameters if p.optional}
    if strangers := grouped - optional:
        raise PatternError(made.name, made.where, f"together= names {sorted(strangers)}, not optional arguments")
    singles = [(p.name,) for p in made.parameters if p.optional and p.name not in grouped]
    return [*made.together, *singles]


def _is_passed_on(made: Pattern, full: Traced, group: tuple[str, ...]) -> bool:
    """Whether leaving the group out only puts None in its place."""
    without = try_trace(made, a_variant(made, frozenset(group)))
    return len(full.outputs) == len(without.outputs) and all(
        _same_but_none(a, b, frozenset(full.inputs[name] for name in group), {})
        for a, b in zip(full.outputs, without.outputs, strict=True)
    )


def _same_but_none(mine: Any, theirs: Any, optional: frozenset[Term], seen: dict[Term, Any]) -> bool:
    if isinstance(mine, Term) and mine in optional:
        return theirs is None
    if isinstance(mine, Term) and isinstance(theirs, Term):
        if mine in seen:
            return seen[mine] is theirs
        seen[mine] = theirs
        if mine.op is INPUT or theirs.op is INPUT:
            return mine.op is theirs.op
        same_op = mine.op is theirs.op and len(mine.args) == len(theirs.args)
        return same_op and _same_but_none(mine.args, theirs.args, optional, seen)
    if isinstance(mine, tuple) and isinstance(theirs, tuple) and len(mine) == len(theirs):
        return all(_same_but_none(a, b, optional, seen) for a, b in zip(mine, theirs, strict=True))
    return type(mine) is type(theirs) and bool(mine == theirs)


def _make_op(made: Pattern, absent: frozenset[str], overload: str, passed_on: frozenset[str]) -> OpOverload:
    traced = try_trace(made, a_variant(made, absent))
    live = set(traced.live())
    arguments = [p for p in made.parameters if p.name in made.unread or _is_used(p, traced, live)]
    _LIBRARY.define(schema(made, overload, arguments, passed_on, len(traced.outputs)))
    qualified = f"{NAMESPACE}::{made.name}" + (f".{overload}" if overload else "")
    names = [p.name for p in arguments]
    torch.library.impl(qualified, "CompositeExplicitAutograd", reference_function(made, names), lib=_LIBRARY)
    torch.library.register_fake(qualified, fake_function(made, names), lib=_LIBRARY)
    op: OpOverload = getattr(getattr(torch.ops.glmfuse, made.name), overload or "default")
    return op


def _is_used(parameter: Parameter, traced: Traced, live: set[Term]) -> bool:
    return not parameter.is_tensor or traced.inputs.get(parameter.name) in live
