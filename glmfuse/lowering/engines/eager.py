"""The engine `eager`: runs the graph operator by operator, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._functorch._aot_autograd.utils import make_boxed_func

from glmfuse.lowering.engines.engine import Engine, Handoff, check_options


def _compile(handoff: Handoff) -> Callable[..., Any]:
    check_options("eager", handoff.options, frozenset())
    handoff.graph_module.recompile()
    return make_boxed_func(handoff.graph_module.forward)


EAGER = Engine("eager", _compile, lambda graph_module, inputs: graph_module.forward, lambda device: None)
