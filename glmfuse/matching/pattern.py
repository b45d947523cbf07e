"""A pattern is one PyTorch function: search graph, schema, fake, oracle and reference kernel at once."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import typing
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, NoneType
from typing import Any

import torch
from torch._ops import OpOverload

from glmfuse.errors import PatternError
from glmfuse.matching import dims as dims_of
from glmfuse.matching.context import Context

NAMESPACE = "glmfuse"
_SCALARS = {float: "float", int: "int", bool: "bool", torch.dtype: "dtype"}
_IN_SCHEMA = {"tensor": "Tensor", "dtype": "ScalarType"}
Case = Mapping[str, int | torch.dtype]
OWN = ""
"""The spelling of a pattern that is its own function."""

_NO_SPELLINGS: Mapping[str, str] = MappingProxyType({})
_as_ops: contextvars.ContextVar[bool] = contextvars.ContextVar("glmfuse_patterns_as_ops", default=False)
_spelled: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("glmfuse_spelled", default=_NO_SPELLINGS)


class ConstraintError(Exception):
    """Raised by `require` inside a constraint; becomes a Mismatch at the one place that calls constraints."""

    def __init__(self, text: str, found: object) -> None:
        super().__init__(text)
        self.found = found


def require(condition: object, text: str, found: object = "") -> None:
    """State what a site must fulfil: `require(x.dtype in FLOATS, "x must be floating point", x.dtype)`.

    Only for constraints of a pattern. `found` is what the report shows beside the expectation.
    """
    if not condition:
        raise ConstraintError(text, found)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a pattern function. `kind` is "tensor", "float", "int", "bool" or "dtype"."""

    name: str
    kind: str
    optional: bool
    sizes: Mapping[str, tuple[str, ...]]

    @property
    def is_tensor(self) -> bool:
        """Whether a tensor, rather than a number or a dtype, is passed."""
        return self.kind == "tensor"

    def sizes_without(self, absent: frozenset[str]) -> tuple[str, ...]:
        """The declared sizes when these optional tensors are absent; an int is a size named like it."""
        found = next((sizes for name, sizes in self.sizes.items() if name in absent), self.sizes[""])
        return found or ((self.name,) if self.kind == "int" else ())


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to call a pattern: which optional tensors are there, which flags are set, what is fixed.

    sizes: symbols of sizes. dtypes: tensors that do not have the model's dtype. spelling: which of the
    pattern's functions.
    """

    absent: frozenset[str] = frozenset()
    flags: tuple[tuple[str, bool], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    dtypes: tuple[tuple[str, torch.dtype], ...] = ()
    spelling: str = OWN

    def __str__(self) -> str:
        words = [f"no {name}" for name in sorted(self.absent)]
        words += [f"{name}={value}" for name, value in (*self.flags, *self.sizes, *self.dtypes)]
        words += [f"spelled {self.spelling}"] if self.spelling else []
        return ", ".join(words) or "full"


@dataclass(slots=True)
class Known:
    """What tracing a pattern tells: its ops by the optional tensors absent, its level, the patterns that it calls."""

    overloads: dict[frozenset[str], OpOverload] = field(default_factory=dict)
    level: int = 0
    calls: frozenset[str] = frozenset()


@dataclass(eq=False)
class Pattern:
    """A registered pattern; call it like the function that it was made from.

    parameters: the function's arguments in order. together: optional tensors that come and go as one.
    examples: sizes of symbols for the two traces, where unlike primes do not do.
    cases: sizes, and dtypes of tensors, that make the function another graph, each with its own search graph.
    dtypes: tensors whose dtype is not the model's. unordered: of so many
    outputs, the first ones, the last axis is in no order, the same for all. updates: the argument whose new value
    the output is.
    carried: tensors that no result depends on, which operators of a spelling are given all the same.
    context: how some of its arguments are made of others, wherever it is.
    spellings: by name, the other functions that compute the same. holds: dtypes without which no graph has it.
    known: what tracing it told; postponed: the steps of tracing it and its spellings that are put off until
    someone asks.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    together: tuple[tuple[str, ...], ...]
    examples: tuple[Mapping[str, int], Mapping[str, int]]
    cases: tuple[Case, ...]
    dtypes: Mapping[str, torch.dtype]
    where: str
    unordered: int = 0
    updates: str | None = None
    carried: frozenset[str] = frozenset()
    context: Context | None = None
    constraints: list[Callable[..., None]] = field(default_factory=list)
    spellings: dict[str, Callable[..., Any]] = field(default_factory=dict)
    holds: frozenset[torch.dtype] = frozenset()
    known: Known = field(default_factory=Known)
    postponed: tuple[Callable[[Pattern], None], ...] = ()

    @property
    def overloads(self) -> Mapping[frozenset[str], OpOverload]:
        """Its ops by the optional tensors that are absent."""
        return self._traced().overloads

    @property
    def level(self) -> int:
        """0, or one more than the highest pattern that it calls."""
        return self._traced().level

    @property
    def calls(self) -> frozenset[str]:
        """The names of the patterns that it calls."""
        return self._traced().calls

    def _traced(self) -> Known:
        """What tracing tells, after tracing where that was put off."""
        steps, self.postponed = self.postponed, ()
        try:
            for step in steps:
                step(self)
        except BaseException:  # it takes seconds, in which a user may interrupt it
            self.postponed = steps
            raise
        return self.known

    @property
    def unread(self) -> frozenset[str]:
        """Tensor arguments that no result need depend on."""
        return self.carried | frozenset(self.context.reads if self.context else ())

    def may_be_in(self, dtypes: Container[torch.dtype]) -> bool:
        """Whether a graph of values of these dtypes can have it; asked before the pattern is traced."""
        return all(dtype in dtypes for dtype in self.holds)

    def function_of(self, spelling: str) -> Callable[..., Any]:
        """The function of that spelling."""
        return self.spellings[spelling] if spelling else self.function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pattern function, or its op while a larger pattern is being traced."""
        if torch.compiler.is_dynamo_compiling():  # a model that calls the pattern: trace into it
            return self.function(*args, **kwargs)
        if not _as_ops.get():
            return self.function_of(_spelled.get().get(self.name, OWN))(*args, **kwargs)
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        bound.apply_defaults()
        return self.call_op(bound.arguments)

    def __repr__(self) -> str:
        return f"<pattern {self.name}>"

    def call_op(self, arguments: Mapping[str, Any]) -> Any:
        """Call the overload for these arguments by name; missing tensors are None."""
        overload = self.overload(arguments)
        return overload(*(arguments[argument.name] for argument in overload._schema.arguments))

    def overload(self, arguments: Mapping[str, Any]) -> OpOverload:
        """The op of the variant that these arguments call."""
        absent = frozenset(name for name in self.structural if arguments.get(name) is None)
        if absent not in self.overloads:
            given = sorted(set(self.structural) - absent)
            raise TypeError(f"{self.name} has no variant with only {given} of {sorted(self.structural)}")
        return self.overloads[absent]

    @property
    def structural(self) -> frozenset[str]:
        """Optional tensors whose absence changes the graph; the others are passed on as None."""
        return frozenset().union(*self.overloads)

    def constraint(self, function: Callable[..., None]) -> Callable[..., None]:
        """Add a condition on sites: a function of some of the pattern's arguments that calls `require`."""
        names = {parameter.name for parameter in self.parameters}
        if strangers := set(inspect.signature(function).parameters) - names:
            raise PatternError(self.name, _where(function), f"the constraint takes {sorted(strangers)}, not arguments")
        self.constraints.append(function)
        return function

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name."""
        return next(parameter for parameter in self.parameters if parameter.name == name)


@contextlib.contextmanager
def patterns_as_ops(value: bool = True) -> Iterator[None]:
    """Inside, a call of a pattern is one op of the graph; with False, its function runs."""
    token = _as_ops.set(value)
    try:
        yield
    finally:
        _as_ops.reset(token)


@contextlib.contextmanager
def patterns_spelled(spellings: Mapping[str, str]) -> Iterator[None]:
    """Inside, the function of a pattern that is called is the one of its spelling here, by pattern name."""
    token = _spelled.set(spellings)
    try:
        yield
    finally:
        _spelled.reset(token)


def read_parameters(name: str, function: Callable[..., Any], dims: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Read a pattern function's signature and declared dims; raise PatternError for what does not fit."""
    where = _where(function)
    hints = _hints(name, function)
    names = list(inspect.signature(function).parameters)
    if strangers := set(dims) - set(names):
        raise PatternError(name, where, f"dims are declared for {sorted(strangers)}, which are not arguments")
    parameters = []
    for argument in names:
        optional, kind = _kind(hints.get(argument, torch.Tensor))
        if kind is None:
            raise PatternError(name, where, f"argument {argument!r} must be a Tensor, float, int, bool or torch.dtype")
        if kind != "tensor" and optional:
            raise PatternError(name, where, f"argument {argument!r} is no tensor and cannot be left out")
        if kind == "tensor" and argument not in dims:
            raise PatternError(name, where, f"no dims are declared for {argument!r}, such as {argument}='... H'")
        try:
            sizes = dims_of.parse(dims.get(argument, ""))
        except (ValueError, SyntaxError) as error:
            raise PatternError(name, where, f"dims of {argument!r}: {error}") from None
        parameters.append(Parameter(argument, kind, optional, sizes))
    return tuple(parameters)


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise PatternError(name, _where(function), f"an annotation cannot be read: {error}") from None


def _kind(hint: Any) -> tuple[bool, str | None]:
    members = typing.get_args(hint)
    optional = NoneType in members
    if optional:
        hint = next(member for member in members if member is not NoneType)
    return optional, "tensor" if hint is torch.Tensor else _SCALARS.get(hint)


def _where(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def schema(
    pattern: Pattern, overload: str, arguments: Sequence[Parameter], passed_on: frozenset[str], outputs: int
) -> str:
    """The schema of one overload, from the declared parameters and the number of outputs traced."""
    words = []
    for parameter in arguments:
        kind = _IN_SCHEMA.get(parameter.kind, parameter.kind)
        words.append(f"{kind}{'?' if parameter.name in passed_on else ''} {parameter.name}")
    result = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
    name = f"{pattern.name}.{overload}" if overload else pattern.name
    return f"{name}({', '.join(words)}) -> {result}"
