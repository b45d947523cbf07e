"""`glmfuse.explain`: what would be fused in a model, without an engine."""

from __future__ import annotations

import builtins
from types import CodeType, FunctionType
from typing import Any

import torch

from glmfuse.backend import compile_graph
from glmfuse.report.report import Report

_RECOMPILES = 64
"""Graphs of one function that may be explained before Dynamo would give up."""


def explain(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Report:
    """Capture and fuse `model(*args, **kwargs)` and return the report of every graph.

    The model runs once, eagerly, under torch.no_grad(): a cache among the arguments is written as by any
    call. A model that torch.compile has wrapped, or compiled in place, is explained as it was before.
    """
    report = Report()
    original = getattr(model, "_orig_mod", model)
    run = FunctionType(_fresh_code(), {"__builtins__": builtins, "forward": original.forward})
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=_RECOMPILES):
        options: dict[str, Any] = {"engine": "eager", "report": report}
        torch.compile(run, backend=compile_graph, options=options)(*args, **kwargs)
    return report


def _fresh_code() -> CodeType:
    """A code object of its own for each call: Dynamo keeps compiled code, and its limits, by code object."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)  # type: ignore[name-defined]  # noqa: F821

    return run.__code__.replace(co_name="run")
