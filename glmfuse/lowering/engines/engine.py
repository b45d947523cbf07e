"""What an engine is, and what it is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._ops import OpOverload

from glmfuse.errors import OptionError

Compiled = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Handoff:
    """An inference graph in aten with fused ops in it, and what is known of its inputs.

    inputs: fake, one for each placeholder. static: places of the inputs whose memory stays where it is from call to
    call, such as weights. options: the user's, for the engine alone.
    """

    graph_module: fx.GraphModule
    inputs: Sequence[Any]
    static: frozenset[int]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """A compiler of aten graphs.

    compile: a hand-off -> a boxed callable. compile_unfused: a Dynamo graph and its inputs -> a callable; the way of
    models that need grad. unavailable: why the engine cannot be used on this kind of device, with what to do, or
    None. devices: the kinds that it is for, or None for all; on others it is not even passed over. decompositions:
    what it wants decomposed while the graph is captured. launches: whether it calls ops that have a kernel and
    nothing else, as those of targets that are not inlined.
    """

    name: str
    compile: Callable[[Handoff], Compiled]
    compile_unfused: Callable[[fx.GraphModule, Sequence[Any]], Compiled]
    unavailable: Callable[[str], str | None]
    devices: frozenset[str] | None = None
    decompositions: Callable[[], Mapping[OpOverload, Callable[..., Any]]] = dict
    launches: bool = True

    def is_for(self, device: str) -> bool:
        """Whether the engine is for such a device at all."""
        return self.devices is None or device in self.devices


def check_options(engine: str, options: Mapping[str, Any], valid: frozenset[str] | set[str]) -> None:
    """Raise OptionError for options that an engine does not have, all of them by name."""
    if strangers := set(options) - valid:
        raise OptionError.unknown(f"engine option of {engine!r}", strangers, valid or ["(none)"])
