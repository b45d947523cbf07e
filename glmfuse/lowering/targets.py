"""Every target that can be asked for by name, in order of preference; the reference comes last."""

from __future__ import annotations

from collections.abc import Iterable

from glmfuse.lowering.pypto.target import PYPTO
from glmfuse.lowering.reference import NAME
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.pattern import Pattern

TARGETS: tuple[Target, ...] = (PYPTO,)
"""Targets with kernels of their own; the reference, made for the patterns in use, follows them."""


def reference_for(patterns: Iterable[Pattern]) -> Target:
    """The target whose kernel for each pattern is the pattern function, inlined."""
    return Target(NAME, {pattern.name: Kernel(pattern.function) for pattern in patterns}, is_inlined=True)
