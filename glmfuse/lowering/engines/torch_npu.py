"""What the engines of torch_npu need: which of them this build has, marks on inputs, a check kept out of captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch._functorch._aot_autograd import runtime_wrappers
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

from glmfuse.ascend import installed
from glmfuse.ascend.versions import Engines, engines_of
from glmfuse.lowering.engines.engine import Handoff

_ALIASING: Final = getattr(runtime_wrappers, "_AnalyzeCustomOpInputOutputMode", None)
"""AOT's check of a graph's first call; absent from older torch."""


def engines_here() -> Engines | str:
    """What torch_npu's engines are here, or why they cannot be used."""
    return installed.unavailable() or engines_of(installed.torch_npu_version() or "")


def mark_static(handoff: Handoff) -> None:
    """Say which inputs stay where they are: their addresses may go into what is compiled, and no call copies them."""
    for place in handoff.static:
        handoff.inputs[place]._torchair_is_parameter = True


def unchecked(compiled: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Keep AOT's check that no operator hands back its arguments out of a boxed callable.

    npugraph_ex turns operators into their `.out` forms, which do hand them back, and torch_npu's schemas do not say
    so: torch warns of each at a graph's first call, and where the variable CI is set it raises.
    """

    def run(args: list[Any]) -> Any:
        if _ALIASING is None or not isinstance(_get_current_dispatch_mode(), _ALIASING):
            return compiled(args)
        with _pop_mode_temporarily():
            return compiled(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
