"""The kernels that a fused kernel replaces: one for each smaller pattern and each operator of its function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch
from glmfuse.lowering.pypto.launch.operator import operator_launch
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.matching.pattern import NAMESPACE, patterns_as_ops
from glmfuse.patterns import BY_NAME


def launches_apart(chip: Chip, pattern: str, values: Mapping[str, Any]) -> tuple[Launch, ...]:
    """A launch for each part of the pattern function, in its order.

    A part is a call of another pattern that has a kernel, or an aten operator that is no view. What does not depend on
    the first argument, or on those that its context makes, such as the cast of a weight, counts as made once. Empty
    where the function is one operator, or calls a pattern that has no kernel.
    """
    context = BY_NAME[pattern].context
    calls = _Calls([next(iter(values.values())), *(values[name] for name in (context.names if context else ()))])
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(patterns_as_ops(True))
        stack.enter_context(calls)
        BY_NAME[pattern].function(**values)
    made = [call for call in calls.made if not call[0].is_view]
    if any(_called(op) not in KERNELS for op, _, _ in made if _called(op)):
        return ()
    return tuple(launch for call in made for launch in _launches(chip, *call)) if len(made) > 1 else ()


def _called(op: Any) -> str:
    """The pattern that an operator is, or nothing."""
    namespace, _, name = op._schema.name.partition("::")
    return name if namespace == NAMESPACE else ""


def _launches(chip: Chip, op: Any, args: tuple[Any, ...], result: Any) -> Iterator[Launch]:
    name = _called(op)
    if name:
        given = {p.name: None for p in BY_NAME[name].parameters}
        given |= {argument.name: value for argument, value in zip(op._schema.arguments, args, strict=True)}
        yield KERNELS[name].launch(chip, **given)
        return
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    if tensors and results:
        yield operator_launch(chip, op._schema.name.partition("::")[2], tensors, results[0])


class _Calls(TorchDispatchMode):
    """Notes every operator that depends on one of some tensors, with its arguments and result."""

    def __init__(self, origins: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[Any, tuple[Any, ...], Any]] = []
        self._following = origins

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(leaf is seen for leaf in tree_leaves(args) for seen in self._following):
            self._following.extend(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.made.append((func, args, result))
        return result
