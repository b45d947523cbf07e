"""Who compiles the graph after fusion; one file for each engine."""

from glmfuse.lowering.engines.choose import ENGINES, choose_engine
from glmfuse.lowering.engines.engine import Engine, Handoff

__all__ = ["ENGINES", "Engine", "Handoff", "choose_engine"]
