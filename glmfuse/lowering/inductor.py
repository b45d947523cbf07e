"""The one place that calls Inductor.

`compile_fx` on a graph that AOT has already made runs AOT again. Decomposing the graph once by
Inductor's own table and calling its inner compiler gives the same code for less (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from glmfuse.errors import OptionError


def compile_graph(
    graph_module: fx.GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile an inference graph in undecomposed aten; options are Inductor's, as for torch.compile."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes

    with config.patch(_checked(options)):
        decomposed = _decompose(graph_module, inputs)
        joint_graph_passes(decomposed)
        compiled: Any = compile_fx_inner(decomposed, inputs, static_input_idxs=_static_inputs(), is_inference=True)
    return compiled


def compile_unfused(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What `backend="inductor"` does with a Dynamo graph, backward included."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(graph_module, list(inputs))
    return compiled


def unavailable(device: str) -> str | None:
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

    valid = set(config.get_config_copy())
    named = {name.replace("-", "_"): value for name, value in options.items()}
    if strangers := set(named) - valid:
        raise OptionError.unknown("engine option of 'inductor'", strangers, valid)
    return named


def _decompose(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    from torch._inductor.decomposition import select_decomp_table

    def run(*values: Any) -> Any:
        return fx.Interpreter(graph_module).run(*values)

    mode = detect_fake_mode(inputs)
    if mode is None:
        raise TypeError("Inductor is given fake inputs, as AOT has them")
    with torch.no_grad(), mode, preserve_node_meta():
        made = make_fx(run, decomposition_table=select_decomp_table(), _allow_non_fake_inputs=True)(*inputs)
    for name, body in made.named_children():
        if isinstance(body, fx.GraphModule):  # called by a higher-order operator, which kept it as it was
            placeholders = [node.meta["val"] for node in body.graph.nodes if node.op == "placeholder"]
            setattr(made, name, _decompose(body, placeholders))
    return made


def _static_inputs() -> Sequence[int]:
    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    return () if metadata is None else metadata.static_input_indices
