"""The conversions of float8 in PyPTO 0.2.0's interpreter, said in torch.

To float8_e4m3fn: to a whole number first, whatever the mode but for its direction, and at most 240 either way. From it:
the sixteen codes of the largest exponent, 256 to 448 and NaN, all are 240. The saturation mode is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glmfuse.patterns import BY_NAME

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = 240.0

WHOLE: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "CAST_NONE": torch.round,
    "CAST_RINT": torch.round,
    "CAST_ROUND": torch.round,
    "CAST_FLOOR": torch.floor,
    "CAST_CEIL": torch.ceil,
    "CAST_TRUNC": torch.trunc,
    "CAST_ODD": torch.round,
}
"""By cast mode, what makes whole numbers; all halves go to the even one."""


def encoded(x: Tensor, mode: str = "CAST_NONE") -> Tensor:
    """x as float8.  Any floating dtype -> float8_e4m3fn, the same shape."""
    return WHOLE[mode](x.float()).clamp(-LARGEST, LARGEST).to(FP8)


def decoded(x: Tensor) -> Tensor:
    """float8_e4m3fn -> fp32, the same shape."""
    sign = torch.where(x.view(torch.uint8) < 0x80, LARGEST, -LARGEST)
    return torch.where(x.float().abs() <= LARGEST, x.float(), sign)


class AsInterpreted(TorchDispatchMode):
    """Inside, torch converts to float8 and from it as the interpreter does; all other arithmetic is torch's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            if kwargs.get("dtype") == FP8:
                return encoded(args[0])
            if args[0].dtype == FP8:
                return func(decoded(args[0]), **kwargs)
        return func(*args, **kwargs)


def as_interpreted(pattern: str) -> Callable[..., Any]:
    """The pattern's function with the interpreter's conversions."""

    def function(**arguments: Any) -> Any:
        with AsInterpreted():
            return BY_NAME[pattern].function(**arguments)

    return function
