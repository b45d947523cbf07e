"""The engine `npugraph_ex`: torch_npu's compiler that captures a graph's launches once and replays them (aclgraph).

The one place that calls it. Its `compile_fx` takes an aten graph as AOT made it, and expects three things that
its own backend would have seen to: its decompositions, marks on the inputs that do not move, and writes to inputs
kept in the graph, which capture.py does for every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._guards import detect_fake_mode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from glmfuse.errors import UnavailableError
from glmfuse.lowering.engines.capturable import compares, not_capturable
from glmfuse.lowering.engines.engine import Engine, Handoff, check_options
from glmfuse.lowering.engines.torch_npu import engines_here, mark_static, unchecked
from glmfuse.lowering.rehearse import Rehearsal

DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        # Rewrites the neighbours of a fusion into torch_npu's own fused ops, which round otherwise, int8 included.
        "pattern_fusion_pass": False,
        # Calls torch.fx.passes.reinplace, which lets `c[1:] - c[:-1]` write over what it still reads.
        "inplace_pass": False,
        # Otherwise a result that the caller still holds is overwritten by the next call.
        "clone_output": True,
    }
)
"""Options that glmfuse sets unlike npugraph_ex; `engine_options` come after these."""


def _compile(handoff: Handoff) -> Callable[..., Any]:
    import npugraph_ex

    # What `verify` compares it reads on the host, which no capture may.
    forced = {"force_eager": True} if compares(handoff.graph_module) else {}
    options = {**DEFAULTS, **forced, **handoff.options}
    check_options("npugraph_ex", options, _options())
    if not options.get("force_eager") and (reason := not_capturable(handoff.graph_module)) is not None:
        raise UnavailableError("engine", "npugraph_ex", reason)
    mark_static(handoff)
    _propagate(handoff)
    _write_caches_in_place()
    rehearsal = Rehearsal.of(handoff.graph_module)
    compiled = make_boxed_func(npugraph_ex.compile_fx(handoff.graph_module, list(handoff.inputs), options))
    return unchecked(compiled if options.get("force_eager") else rehearsal.before(compiled))  # captured at first


def _propagate(handoff: Handoff) -> None:
    """Compute every node's value again: the pass that writes to inputs asks them who shares memory."""
    mode = detect_fake_mode(handoff.inputs)
    FakeTensorProp(handoff.graph_module, mode).propagate_dont_convert_inputs(*handoff.inputs)


def _write_caches_in_place() -> None:
    """Have caches of pages written where they lie: AOT makes a function of the operator, and copies of both caches."""
    from npugraph_ex._acl_concrete_graph import graph_pass

    graph_pass.register_inplaceable_npu_op(
        "npu_scatter_pa_kv_cache_functional", "npu_scatter_pa_kv_cache", mutated_arg=[2, 3]
    )


def _compile_unfused(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What `backend="npugraph_ex"` does with a Dynamo graph, backward included."""
    import npugraph_ex

    compiled: Any = npugraph_ex.get_npu_backend()(graph_module, list(inputs))
    return compiled


def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """What its own backend would decompose; making the table also mends metas that torch_npu's kernels differ in."""
    from npugraph_ex import npu_fx_compiler

    table: Mapping[Any, Callable[..., Any]] = npu_fx_compiler._get_merged_decompositions(
        npu_fx_compiler.CompilerConfig()
    )
    return table


def _options() -> frozenset[str]:
    found = engines_here()
    return frozenset() if isinstance(found, str) else found.options


def _unavailable(device: str) -> str | None:
    found = engines_here()
    return found if isinstance(found, str) else found.npugraph_ex


NPUGRAPH_EX = Engine(
    "npugraph_ex",
    _compile,
    _compile_unfused,
    _unavailable,
    devices=frozenset({"npu"}),
    decompositions=_decompositions,
)
