"""Every way to call a pattern, traced on made-up arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from glmfuse.capture import Fresh
from glmfuse.errors import PatternError
from glmfuse.matching import dims as dims_of
from glmfuse.matching.pattern import OWN, ConstraintError, Pattern, Variant
from glmfuse.matching.traced import Traced, record_pattern

EXAMPLE_DTYPE = torch.bfloat16
"""The dtype in which a pattern is traced when it is registered."""

EXAMPLE_DEVICE = "cpu"
"""The kind of device on which a pattern is traced when it is registered; matching traces it on the graph's."""

_FLOATS = (0.01171875, 0.02734375)
"""Values of the first float argument in the two traces, exact in binary and in no pattern's text.

Those of the next ones lie 0.5 further each.
"""

_DTYPES = (torch.bfloat16, torch.float16)
"""Values of dtype arguments in the two traces; unlike, so that the model's dtype is not taken for one."""


def example_trace(
    pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int, device: str = EXAMPLE_DEVICE
) -> Traced:
    """Trace a variant on the first or second of its made-up examples."""
    return _trace(pattern, variant, dtype, which, device, in_context=False)


def trace_in_context(
    pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int, device: str = EXAMPLE_DEVICE
) -> Traced:
    """The same together with what makes some of its arguments, which are then returned behind the results."""
    return _trace(pattern, variant, dtype, which, device, in_context=pattern.context is not None)


@cache
def _trace(pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int, device: str, in_context: bool) -> Traced:
    values = example_sizes(pattern, variant, which)
    fresh = Fresh()
    tensors = {
        p.name: fresh.empty(
            shape=dims_of.evaluate(p.sizes_without(variant.absent), values, which),
            stride=None,
            dtype={**pattern.dtypes, **dict(variant.dtypes)}.get(p.name, dtype),
            device=torch.device(device),
        )
        for p in pattern.parameters
        if p.is_tensor and p.name not in variant.absent
    }
    scalars = example_scalars(pattern, variant, values, which)
    function = pattern.function_of(variant.spelling)
    if in_context and pattern.context is not None:
        function = pattern.context.around(function)
    return record_pattern(pattern, tensors, scalars, function)


def example_sizes(pattern: Pattern, variant: Variant, which: int) -> dict[str, int]:
    """The size of each symbol of the declared dims, unlike in the two examples."""
    declared = [p.sizes_without(variant.absent) for p in pattern.parameters]
    return dims_of.assign(declared, {**pattern.examples[which], **dict(variant.sizes)}, which)


def example_scalars(pattern: Pattern, variant: Variant, values: Mapping[str, int], which: int) -> dict[str, Any]:
    """The numbers and flags of an example; no literal of the function's text equals them."""
    scalars: dict[str, Any] = dict(variant.flags)
    floats = itertools.count(_FLOATS[which], 0.5)
    for parameter in pattern.parameters:
        if parameter.kind == "int":
            scalars[parameter.name] = dims_of.evaluate(parameter.sizes_without(variant.absent), values, which)[0]
        elif parameter.kind == "float":
            scalars[parameter.name] = next(floats)
        elif parameter.kind == "dtype":
            scalars[parameter.name] = _DTYPES[which]
    return scalars


def variants(pattern: Pattern) -> Iterator[Variant]:
    """Every way to call the pattern in each of its spellings, its own and the fullest first."""
    for spelling in (OWN, *pattern.spellings):
        for absent in sorted(pattern.overloads, key=lambda names: (len(names), sorted(names))):
            yield from variants_with(pattern, absent, spelling)


def variants_with(pattern: Pattern, absent: frozenset[str], spelling: str = OWN) -> Iterator[Variant]:
    """The flags and cases that a spelling takes without these tensors; its function's `require` says so."""
    flags = [p.name for p in pattern.parameters if p.kind == "bool"]
    for values in itertools.product((True, False), repeat=len(flags)):
        for case in pattern.cases:
            sizes = tuple((name, size) for name, size in case.items() if isinstance(size, int))
            dtypes = tuple((name, dtype) for name, dtype in case.items() if isinstance(dtype, torch.dtype))
            variant = Variant(absent, tuple(zip(flags, values, strict=True)), sizes, dtypes, spelling)
            if takes(pattern, variant, EXAMPLE_DTYPE):
                yield variant


@cache
def takes(pattern: Pattern, variant: Variant, dtype: torch.dtype, device: str = EXAMPLE_DEVICE) -> bool:
    """Whether there is such a variant in a dtype on a device; a function may be written for some alone.

    Raises PatternError for one that does not trace where patterns are registered.
    """
    try:
        example_trace(pattern, variant, dtype, 0, device)
    except ConstraintError:
        return False
    except PatternError:
        raise
    except Exception as error:
        if (dtype, device) != (EXAMPLE_DTYPE, EXAMPLE_DEVICE):
            return False
        raise PatternError(pattern.name, pattern.where, f"tracing it ({variant}) fails: {error}") from error
    return True
