"""`glmfuse explain`: the report of an architecture at its real sizes, without its weights."""

from __future__ import annotations

import json
from typing import Any

from glmfuse.cli.quiet import Steps, quiet

_BATCH, _CACHE = 1, 4096


def explain_config(config: str, layers: int | None, phase: str, tokens: int, *, as_json: bool) -> int:
    """Trace the model of a config on fake tensors and print its report."""
    from glmfuse import huggingface
    from glmfuse.dry_run import explain

    raw = huggingface.read_config(config)
    overrides: dict[str, Any] = {} if layers is None else {"num_hidden_layers": layers}
    with Steps(2) as step, quiet():
        parsed = huggingface.make_config(raw, **overrides)
        depth = parsed.get_text_config().num_hidden_layers
        with huggingface.weightless():
            step(f"building {depth} layers without weights")
            model = huggingface.build_weightless(parsed)
            length = 1 if phase == "decode" else tokens
            cache = huggingface.static_cache(model, _BATCH, max(_CACHE, tokens))
            step(f"tracing {depth} layers, about half a second each")
            ids, given = huggingface.random_tokens(model, _BATCH, length), huggingface.call_with(model, cache)
            report = explain(model, ids, **given)
    print(json.dumps(report.to_json(), indent=1, default=str) if as_json else report)
    return 0
