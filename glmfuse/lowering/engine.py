"""Who compiles the graph after fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func

from glmfuse.errors import OptionError, UnavailableError
from glmfuse.lowering import inductor

Compiled = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """A compiler of aten graphs.

    compile: an inference graph in aten, with fused ops in it, and fake inputs -> a boxed callable.
    compile_unfused: a Dynamo graph and its inputs -> a callable; the way of models that need grad.
    unavailable: why the engine cannot be used on this kind of device, with what to install, or None.
    """

    name: str
    compile: Callable[[fx.GraphModule, Sequence[Any], Mapping[str, Any]], Compiled]
    compile_unfused: Callable[[fx.GraphModule, Sequence[Any]], Compiled]
    unavailable: Callable[[str], str | None]


def _run_eagerly(graph_module: fx.GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> Compiled:
    if options:
        raise OptionError.unknown("engine option of 'eager'", options, ["(none)"])
    graph_module.recompile()
    return make_boxed_func(graph_module.forward)


def _always(device: str) -> str | None:
    return None


INDUCTOR = Engine("inductor", inductor.compile_graph, inductor.compile_unfused, inductor.unavailable)
EAGER = Engine("eager", _run_eagerly, lambda graph_module, inputs: graph_module.forward, _always)

ENGINES: tuple[Engine, ...] = (INDUCTOR, EAGER)
"""In order of preference."""


def choose_engine(name: str | None, inputs: Sequence[Any], note: Callable[[str], None]) -> Engine:
    """The engine asked for, or the first usable one; `note` hears which were passed over and why."""
    device = _device_of(inputs)
    if name is not None:
        engine = next((engine for engine in ENGINES if engine.name == name), None)
        if engine is None:
            raise OptionError.unknown("engine", [name], [engine.name for engine in ENGINES])
        if (reason := engine.unavailable(device)) is not None:
            raise UnavailableError("engine", name, reason)
        return engine
    for engine in ENGINES:
        reason = engine.unavailable(device)
        if reason is None:
            return engine
        note(f"engine {engine.name!r} passed over: {reason}")
    raise UnavailableError("engine", "any", "none of the engines can be used on this device")


def _device_of(inputs: Sequence[Any]) -> str:
    devices = [value.device.type for value in inputs if isinstance(value, torch.Tensor)]
    return next((device for device in devices if device != "cpu"), "cpu")
