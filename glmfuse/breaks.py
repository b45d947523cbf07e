"""A model that Dynamo breaks into pieces: said once, with what to do about it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from torch._dynamo.utils import counters

from glmfuse.report.report import Report

_ADVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "nonzero": "If that is the loop over experts of transformers, choose experts that compile whole: "
        "model.set_experts_implementation('grouped_mm'), or 'batched_mm'.",
    }
)
"""By a word of Dynamo's reason, the option of the model that avoids it."""

_ANY: Final = "torch.compile(model, fullgraph=True) names the line."

_told: set[str] = set()
_met: dict[str, int] = {}
"""How often Dynamo had met each reason when it was last asked: it counts for all models of the process."""


def tell(report: Report) -> None:
    """Note each reason for a graph break that Dynamo has met since the last call; warn of it once in a process."""
    found = dict(counters["graph_break"])
    new = [reason for reason, count in found.items() if count != _met.get(reason)]
    _met.clear()
    _met.update(found)
    for reason in new:
        short = " ".join(line.strip() for line in reason.splitlines()[:2])
        advice = next((text for word, text in _ADVICE.items() if word in reason), _ANY)
        text = f"The model is compiled in pieces, and only what lies within a piece is fused: {short} {advice}"
        report.note(text)
        if short not in _told:
            _told.add(short)
            warnings.warn(f"glmfuse: {text}", stacklevel=2)
