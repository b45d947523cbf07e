"""The engine `torchair`: torch_npu's converter to a GE graph, which CANN compiles as a whole.

The one place that calls it. GE knows operators by their registered IR, so ops that launch a kernel of their own
have no place in its graph: targets that make such ops are passed over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func

from glmfuse.errors import OptionError, UnavailableError
from glmfuse.lowering.engines.engine import Engine, Handoff
from glmfuse.lowering.engines.torch_npu import engines_here, mark_static

_NO_CONVERTER = ("ge_converter is not implemented", "auto-generated converter", "No AscendIR")
"""How torchair says so, of torch's operators and of others."""

_LINE = 120
"""Characters of its message that are about the operator."""


def _compile(handoff: Handoff) -> Callable[..., Any]:
    import torchair

    config = _config(handoff.options)
    mark_static(handoff)
    try:
        compiled = torchair.get_compiler(config)(handoff.graph_module, list(handoff.inputs))
    except Exception as error:
        raise _explained(error) from error
    return make_boxed_func(compiled)


def _config(options: Mapping[str, Any]) -> Any:
    """A CompilerConfig; options name its fields with dots, as in {"experimental_config.frozen_parameter": True}."""
    import torchair

    config = torchair.CompilerConfig()
    strangers = [name for name in options if not _set(config, name.split("."), options[name])]
    if strangers:
        fields = [name for name in vars(config) if not name.startswith("_")]
        raise OptionError.unknown("engine option of 'torchair'", strangers, [f"{name}…" for name in fields])
    return config


def _set(config: Any, path: Sequence[str], value: Any) -> bool:
    """Set a field, and say whether there is such a field."""
    for name in path[:-1]:
        config = getattr(config, name, None)
    name = path[-1]
    if config is None or name.startswith("_") or not _has(config, name):
        return False
    setattr(config, name, value)
    return True


def _has(config: Any, name: str) -> bool:
    kind = getattr(type(config), name, None)
    return name in vars(config) or (isinstance(kind, property) and kind.fset is not None)


def _explained(error: Exception) -> Exception:
    """An operator that torchair cannot convert, said so that the user knows what to change."""
    words = str(error)
    if (sign := next((sign for sign in _NO_CONVERTER if sign in words), None)) is None:
        return error
    line = next(line for line in words.splitlines() if sign in line)
    reason = f"it has no GE operator for a part of this graph ({line.strip()[:_LINE]})"
    remedy = "use engine 'npugraph_ex', or a target that takes the part, such as 'aclnn'"
    return UnavailableError("engine", "torchair", f"{reason}; {remedy}")


def _compile_unfused(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What torchair's own backend does with a Dynamo graph, backward included."""
    import torchair

    compiled: Any = torchair.get_npu_backend()(graph_module, list(inputs))
    return compiled


def _unavailable(device: str) -> str | None:
    if isinstance(found := engines_here(), str):
        return found
    if "npugraph_ex.npu_fx_compiler" in sys.modules and "torchair._ge_concrete_graph" not in sys.modules:
        return (
            "npugraph_ex was used in this process before it, and both register kernels for the same operators; "
            "use one of them in a process, or torchair first"
        )
    return None


TORCHAIR = Engine("torchair", _compile, _compile_unfused, _unavailable, devices=frozenset({"npu"}), launches=False)
