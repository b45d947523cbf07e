"""The engine `inductor`, and the one place that calls Inductor.

`compile_fx` runs AOT once more on the graph that AOT has made. Decomposing the graph ourselves and calling
the inner compiler takes as long and runs as fast (docs/measurements.md), through five private functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._guards import TracingContext, detect_fake_mode, tracing

from glmfuse.lowering.engines.engine import Engine, Handoff, check_options


def _compile(handoff: Handoff) -> Callable[..., Any]:
    """Compile an inference graph in undecomposed aten; options are Inductor's, as for torch.compile."""
    from torch._inductor.compile_fx import compile_fx

    # A context of its own: the one under way remembers shared bodies as they were before decomposition.
    with tracing(TracingContext(detect_fake_mode(handoff.inputs))):
        patches = _checked(handoff.options)
        compiled: Any = compile_fx(handoff.graph_module, list(handoff.inputs), config_patches=patches)
    return make_boxed_func(compiled)


def _compile_unfused(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What `backend="inductor"` does with a Dynamo graph, backward included."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(graph_module, list(inputs))
    return compiled


def _unavailable(device: str) -> str | None:
    """Why Inductor cannot compile for this device, or None."""
    if device == "cpu":
        return _no_cpp_compiler()
    if device in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        return None if has_triton() else f"Triton is not there; install it to compile for {device}"
    return f"Inductor does not compile for {device}"


def _no_cpp_compiler() -> str | None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler is there; install g++ or clang++, or name one in CXX"
    return None


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    from torch._inductor import config

    named = {name.replace("-", "_"): value for name, value in options.items()}
    check_options("inductor", named, set(config.get_config_copy()))
    return named


INDUCTOR = Engine("inductor", _compile, _compile_unfused, _unavailable)
