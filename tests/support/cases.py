"""The registered patterns in their variants and dtypes, with random arguments, for the tests of all patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest
import torch

from glmfuse.matching import dims as dims_of
from glmfuse.matching.examples import example_scalars, example_sizes, takes, variants
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.patterns import PATTERNS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _cases() -> Iterator[tuple[Pattern, Variant]]:
    """Every variant, of patterns with one function all in the first: the others differ in the patterns they call."""
    functions: set[CodeType] = set()
    for pattern in PATTERNS:
        found = list(variants(pattern))
        is_known = pattern.function.__code__ in functions
        functions.add(pattern.function.__code__)
        yield from ((pattern, variant) for variant in (dict.fromkeys((found[0], found[-1])) if is_known else found))


CASES = [pytest.param(pattern, variant, id=f"{pattern.name}-{variant}") for pattern, variant in _cases()]


def _overloads() -> Iterator[Any]:
    """The fullest and the barest of each pattern, since the others' schemas are made by the same rule."""
    for pattern in PATTERNS:
        own = [variant for variant in variants(pattern) if not variant.spelling]
        for variant in dict.fromkeys((own[0], own[-1])):
            yield pytest.param(pattern, variant, id=f"{pattern.name}-{variant}")


OVERLOADS = list(_overloads())


def in_dtypes(wanted: Callable[[bool], tuple[torch.dtype, ...]], spelled: bool | None = None) -> list[Any]:
    """The cases, each in its dtypes, given whether it is the first of its pattern and spelling.

    spelled: only other spellings than the pattern's own, or only that.
    """
    seen: set[tuple[str, str]] = set()
    made = []
    for pattern, variant in (case.values for case in CASES):
        is_first = (pattern.name, variant.spelling) not in seen
        seen.add((pattern.name, variant.spelling))
        if spelled in (None, bool(variant.spelling)):
            for dtype in wanted(is_first):
                if takes(pattern, variant, dtype):
                    made.append(pytest.param(pattern, variant, dtype, id=f"{pattern.name}-{variant}-{dtype}"))
    return made


def every_dtype_once(is_first: bool) -> tuple[torch.dtype, ...]:
    """All dtypes for a pattern's first variant; the others differ from it in their graph, which bf16 shows."""
    return DTYPES if is_first else (torch.bfloat16,)


def every_graph(is_first: bool) -> tuple[torch.dtype, ...]:
    """Without casts a graph is another one, so fp32 for all; fp16 has the graph of bf16."""
    return DTYPES if is_first else (torch.float32, torch.bfloat16)


def example(pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int = 0) -> dict[str, Any]:
    """Real arguments: random tensors of the pattern's own example sizes."""
    values = example_sizes(pattern, variant, which)
    arguments: dict[str, Any] = {p.name: None for p in pattern.parameters}
    for parameter in pattern.parameters:
        if parameter.is_tensor and parameter.name not in variant.absent:
            shape = dims_of.evaluate(parameter.sizes_without(variant.absent), values, which)
            arguments[parameter.name] = _draw(parameter.name, shape, pattern.dtypes.get(parameter.name, dtype))
    return {**arguments, **example_scalars(pattern, variant, values, which)}


def _draw(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers, int8, bytes and words of int4 of all that there are; scales in words are fp32 there.

    Other integers are ids, lengths or positions that every size allows, in one dimension distinct.
    """
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    if dtype in (torch.int8, torch.uint8):
        return torch.randint(0, 256, shape, dtype=torch.uint8).view(dtype)
    if dtype == torch.int32 and name.startswith("w"):
        return torch.randint(-(2**31), 2**31, shape).to(dtype)
    if dtype == torch.int64 and name.startswith("s"):
        return torch.rand(shape).view(torch.int32).to(dtype)
    return (1 + torch.randperm(*shape) if len(shape) == 1 else torch.randint(1, 4, shape)).to(dtype)
