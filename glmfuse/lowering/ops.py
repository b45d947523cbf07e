"""The torch.library ops that stand for kernels in a graph, `glmfuse_<target>::<pattern>`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.reference import fake_function

_KEYS = ("CompositeExplicitAutograd", "PrivateUse1")
"""A kernel is the same on every device. Ascend's engines look for one that is registered for theirs, PrivateUse1."""

COMPILING: set[OpOverload] = set()
"""Ops whose kernel compiles at its first call for some shapes; that call must not fall into a capture."""

_LIBRARIES: dict[str, torch.library.Library] = {}


def make_op(
    namespace: str, pattern: Pattern, reference: OpOverload, kernel: Callable[..., Any], *, overwrites: bool
) -> OpOverload:
    """An op with the schema of a pattern's overload that calls the kernel with arguments by name.

    With `overwrites`, the argument that the pattern updates is written in place, and nothing is returned: an op
    may not return what it was given. Readers of the new value then read that argument. The op's name ends with
    "_": by that, and by the first argument, npugraph_ex tells the inputs that it may not copy for a capture.
    """
    names = [argument.name for argument in reference._schema.arguments]
    function = _by_name(pattern, names, kernel)
    fake = fake_function(pattern, names)
    if overwrites:
        function, fake = _without_result(function), _nothing
    library = _LIBRARIES.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    overload = reference._schema.overload_name
    packet = pattern.name + ("_" if overwrites else "")
    name = f"{packet}.{overload}" if overload else packet
    library.define(name + _signature(reference, pattern.updates if overwrites else None))
    for key in _KEYS:
        torch.library.impl(f"{namespace}::{name}", key, function, lib=library)
    torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    op: OpOverload = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    return op


def _signature(reference: OpOverload, written: str | None) -> str:
    """The arguments and results of a schema; with one written in place, `Tensor(a!)`, there is no result."""
    schema = str(reference._schema)
    signature = schema[schema.index("(") :]
    if written is None:
        return signature
    arguments, _, _ = signature.rpartition(" -> ")
    return re.sub(rf"\bTensor {written}\b", f"Tensor(a!) {written}", arguments) + " -> ()"


def _by_name(pattern: Pattern, names: list[str], kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        arguments: dict[str, Any] = {p.name: None for p in pattern.parameters}
        arguments.update(zip(names, values, strict=True))
        return kernel(**arguments)

    return run


def _without_result(function: Callable[..., Any]) -> Callable[..., None]:
    def run(*values: Any) -> None:
        function(*values)

    return run


def _nothing(*values: Any) -> None:
    """The fake of an op that writes in place: shapes stay, and there is no result."""
