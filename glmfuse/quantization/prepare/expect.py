"""What a tensor has to be; the one place that refuses, with layer, expected and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from glmfuse.errors import Problem, QuantizationError


def refusal(layer: str, expected: str, found: object) -> QuantizationError:
    """The error of a layer whose tensors cannot be what was asked for."""
    return QuantizationError("weights as kernels read them", [Problem(layer, expected, str(found))])


def shaped(layer: str, name: str, tensor: Tensor, shape: Sequence[int], *dtypes: torch.dtype) -> Tensor:
    """The tensor, if it has this shape and one of these dtypes (none: any).

    Raises:
        QuantizationError: it has not.
    """
    is_typed = not dtypes or tensor.dtype in dtypes
    if tuple(tensor.shape) == tuple(shape) and is_typed:
        return tensor
    wanted = f"{name} {list(shape)}" + (f" of {' or '.join(map(_short, dtypes))}" if dtypes else "")
    raise refusal(layer, wanted, f"{list(tensor.shape)} of {_short(tensor.dtype)}")


def held(layer: str, tensors: Mapping[str, Tensor], *names: str) -> tuple[Tensor, ...]:
    """These tensors of a layer.

    Raises:
        QuantizationError: some are missing; all of them are named.
    """
    if missing := [name for name in names if name not in tensors]:
        raise refusal(layer, f"the tensors {', '.join(names)}", f"none named {', '.join(missing)}")
    return tuple(tensors[name] for name in names)


def divides(layer: str, part: int, whole: int, what: str) -> int:
    """whole / part.

    Raises:
        QuantizationError: it is no whole number of parts.
    """
    if part <= 0 or whole % part:
        raise refusal(layer, what, f"{whole} by {part}")
    return whole // part


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
