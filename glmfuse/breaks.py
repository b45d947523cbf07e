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


def tell(report: Report) -> None:
    """Note every reason for a graph break that Dynamo has met by now, and warn of each once in a process."""
    for reason in counters["graph_break"]:
        short = " ".join(line.strip() for line in reason.splitlines()[:2])
        advice = next((text for word, text in _ADVICE.items() if word in reason), _ANY)
        text = f"The model is compiled in pieces, and only what lies within a piece is fused: {short} {advice}"
        report.note(text)
        if short not in _told:
            _told.add(short)
            warnings.warn(f"glmfuse: {text}", stacklevel=2)
