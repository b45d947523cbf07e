"""`glmfuse demo`: the main job on a tiny GLM-4.5 with random weights."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from glmfuse.cli.quiet import Steps, quiet
from glmfuse.lowering.tolerance import allowed

_BATCH, _PROMPT, _CACHE = 2, 7, 32
_SITES_IN_A_ROW = 16
"""Four layers of four sites each: their roundings add up at the worst."""


def demo(engine: str | None, dtype: str) -> int:
    """Compile one decode step, compare it with eager, print the report; 1 when the two differ."""
    from glmfuse import huggingface
    from glmfuse.report.report import Report

    report = Report()
    with Steps(4) as step, quiet(), torch.no_grad():
        step("building a tiny GLM-4.5")
        model = huggingface.build(huggingface.make_config(huggingface.TINY), getattr(torch, dtype))
        cache = huggingface.static_cache(model, _BATCH, _CACHE)
        model(huggingface.random_tokens(model, _BATCH, _PROMPT), **huggingface.call_with(model, cache))
        token = huggingface.random_tokens(model, _BATCH, 1)
        step("running it eagerly")
        expected = model(token, **huggingface.call_with(model, copy.deepcopy(cache))).logits
        step("compiling: Dynamo, glmfuse, engine")
        options: dict[str, Any] = {"report": report}
        if engine is not None:
            options["engine"] = engine
        compiled: Any = torch.compile(model, backend="glmfuse", options=options, fullgraph=True)
        start = time.perf_counter()
        found = compiled(token, **huggingface.call_with(model, cache)).logits
        seconds = time.perf_counter() - start
        step("comparing")
    return _print(report, expected, found, seconds)


def _print(report: Any, expected: torch.Tensor, found: torch.Tensor, seconds: float) -> int:
    graph = report.graphs[0]
    error = ((found - expected).double().norm() / expected.double().norm()).item()
    verdict = "equal" if torch.equal(found, expected) else f"relative L2 error {error:.2g}"
    print(f"tiny GLM-4.5, {expected.dtype}, one decode step: {verdict} against eager")
    print(report)
    stages = sum(spent for stage, spent in graph.seconds.items() if stage != "engine")
    engine = graph.seconds["engine"]
    print(
        f"first call {seconds:.1f} s: Dynamo and AOT {seconds - stages - engine:.1f}, "
        f"glmfuse {stages:.1f}, {graph.engine} {engine:.1f}"
    )
    return 0 if error <= _SITES_IN_A_ROW * allowed(expected.dtype) else 1
