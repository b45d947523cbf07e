"""Every target that can be asked for by name, in order of preference; the reference comes last."""

from __future__ import annotations

from collections.abc import Iterable

from glmfuse.lowering.pypto.target import PYPTO
from glmfuse.lowering.reference import NAME
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.pattern import Pattern
from glmfuse.matching.select import Request

TARGETS: tuple[Target, ...] = (PYPTO,)
"""Targets with kernels of their own; the reference, made for the patterns in use, follows them."""


def reference_for(patterns: Iterable[Pattern]) -> Target:
    """The target whose kernel for each pattern is the pattern function, inlined: the same to the bit."""
    return Target(NAME, {pattern.name: Kernel(pattern.function, _same_bits) for pattern in patterns}, is_inlined=True)


def _same_bits(request: Request) -> str | None:
    return request.unlike and f"{request.unlike} would read another memory layout, and may round otherwise"
