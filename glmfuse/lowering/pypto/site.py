"""A site of a pattern for given arguments, as selection would ask a kernel about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from glmfuse.canonicalize.schema import is_view
from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import PyptoKernel
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import ConstraintError, Variant
from glmfuse.matching.select import Request
from glmfuse.options import LAUNCH_US
from glmfuse.patterns import BY_NAME


def site_of(pattern: str, values: Mapping[str, Any], launch_us: float = LAUNCH_US) -> Request:
    """The request for a pattern's arguments by name; only the tensors' layouts are read."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in values.items() if value is not None and name not in tensors}
    empty = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
    with _Counted() as counted:
        made = BY_NAME[pattern].function(**{**values, **empty})
    outputs = tuple(Layout.of(tensor) for tensor in ((made,) if isinstance(made, Tensor) else made))
    layouts = {name: Layout.of(tensor) for name, tensor in tensors.items()}
    operators = len(counted.operators)
    return Request(BY_NAME[pattern], Variant(), layouts, scalars, outputs, operators, operators, launch_us)


class _Counted(TorchDispatchMode):
    """Notes the operators that the pattern function calls, but for views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[OpOverload] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.operators.append(func)
        return func(*args, **(kwargs or {}))


def refusal(chip: Chip, kernel: PyptoKernel, pattern: str, values: Mapping[str, Any]) -> str | None:
    """Why a kernel, or its pattern, does not take these arguments, with the number that exceeds, or None."""
    try:
        site = site_of(pattern, values)
    except ConstraintError as error:
        return str(error)
    return kernel.limits(chip, site)
