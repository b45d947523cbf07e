"""glmfuse: a torch.compile backend for whole-network fusion of GLM-4.5 on Ascend.

`torch.compile(model, backend="glmfuse")` needs no import of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmfuse.errors import GlmfuseError
from glmfuse.options import Options
from glmfuse.report.report import Report

if TYPE_CHECKING:
    from glmfuse.dry_run import explain
    from glmfuse.lowering.target import Kernel, Target
    from glmfuse.lowering.weights.registry import refresh
    from glmfuse.matching.pattern import require
    from glmfuse.matching.register import pattern, spelling_of
    from glmfuse.matching.select import Gain

__all__ = [
    "Gain",
    "GlmfuseError",
    "Kernel",
    "Options",
    "Report",
    "Target",
    "explain",
    "pattern",
    "refresh",
    "require",
    "spelling_of",
]

_LAZY = {
    "explain": "glmfuse.dry_run",
    "pattern": "glmfuse.matching.register",
    "refresh": "glmfuse.lowering.weights.registry",
    "require": "glmfuse.matching.pattern",
    "spelling_of": "glmfuse.matching.register",
    "Gain": "glmfuse.matching.select",
    "Kernel": "glmfuse.lowering.target",
    "Target": "glmfuse.lowering.target",
}
"""Loaded at first use: they bring torch's compiler and the patterns with them."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'glmfuse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
