"""Every target that can be asked for by name, in order of preference; the reference comes last."""

from __future__ import annotations

from collections.abc import Iterable

from glmfuse.lowering.aclnn.target import ACLNN
from glmfuse.lowering.aten.target import ATEN
from glmfuse.lowering.pypto.target import PYPTO
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.pattern import Pattern
from glmfuse.matching.select import Gain, Request

REFERENCE = "reference"

_INLINED_US = 1e-3
"""The least difference between gains that planning sees."""

TARGETS: tuple[Target, ...] = (PYPTO, ACLNN, ATEN)
"""Targets with kernels of their own; the reference, made for the patterns in use, follows them."""


def reference_for(patterns: Iterable[Pattern]) -> Target:
    """The target whose kernel for each pattern is the pattern function, inlined: the same to the bit."""
    kernels = {pattern.name: Kernel(pattern.function, _same_bits, _hardly_anything) for pattern in patterns}
    return Target(REFERENCE, kernels, inlined=lambda kernel, site: site.trace.body)


def _hardly_anything(request: Request) -> Gain:
    """Inlining saves no launch: larger sites come before smaller ones, and any kernel before both."""
    return Gain(0.0, (request.compute_nodes - 1) * _INLINED_US, "inlined: for the order of sites alone")


def _same_bits(request: Request) -> str | None:
    return request.unlike and f"{request.unlike} would read another memory layout, and may round otherwise"
