"""The engines in order of preference, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glmfuse.capture import device_of
from glmfuse.errors import OptionError, UnavailableError
from glmfuse.lowering.engines.eager import EAGER
from glmfuse.lowering.engines.engine import Engine
from glmfuse.lowering.engines.inductor import INDUCTOR
from glmfuse.lowering.engines.npugraph_ex import NPUGRAPH_EX
from glmfuse.lowering.engines.torchair import TORCHAIR

ENGINES: tuple[Engine, ...] = (NPUGRAPH_EX, TORCHAIR, INDUCTOR, EAGER)
"""In order of preference."""


def choose_engine(name: str | None, inputs: Sequence[Any], note: Callable[[str], None]) -> Engine:
    """The engine asked for, or the first usable one; `note` hears which were passed over and why."""
    device = device_of(inputs)
    if name is not None:
        return _named(name, device)
    for engine in ENGINES:
        if not engine.is_for(device):
            continue
        reason = engine.unavailable(device)
        if reason is None:
            return engine
        note(f"engine {engine.name!r} passed over: {reason}")
    raise UnavailableError("engine", "any", "none of the engines can be used on this device")


def _named(name: str, device: str) -> Engine:
    engine = next((engine for engine in ENGINES if engine.name == name), None)
    if engine is None:
        raise OptionError.unknown("engine", [name], [engine.name for engine in ENGINES])
    if not engine.is_for(device):
        kinds = ", ".join(sorted(engine.devices or ()))
        raise UnavailableError("engine", name, f"it compiles for {kinds}, and the model is on {device}")
    if (reason := engine.unavailable(device)) is not None:
        raise UnavailableError("engine", name, reason)
    return engine
