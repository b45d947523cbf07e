"""Captured graphs, and the stages run on copies of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func

from glmfuse.backend import fusion_for
from glmfuse.capture import capture_model
from glmfuse.fuse import fuse
from glmfuse.options import Options
from glmfuse.report.report import GraphReport, Report


@dataclass
class Captured:
    """An aten graph as AOT gives it, and the real inputs of the call that made it."""

    graph_module: fx.GraphModule
    inputs: list[Any]

    def module(self) -> fx.GraphModule:
        """A copy to work on; its constants, which may be fake, are shared."""
        return _copy(self.graph_module)

    def arguments(self) -> list[Any]:
        """The inputs once more, so that writes to them stay apart; strides are kept."""
        return [_clone(value) for value in self.inputs]


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    return fx.GraphModule(module, copy.deepcopy(module.graph))


def _clone(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return laid_out(value, value.stride())


def laid_out(value: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A copy in these strides; along a dimension of stride 0, the first slice is the value of all."""
    first = value[tuple(slice(1 if step == 0 else None) for step in stride)]
    made = torch.empty_strided(first.shape, stride, dtype=value.dtype, device=value.device)
    return made.copy_(first).expand(value.shape)


def capture(
    model: Callable[..., Any], *args: Any, dynamic: bool | None = None, fullgraph: bool = True, **kwargs: Any
) -> list[Captured]:
    """Every graph of one call, captured by the road that the backend takes."""
    found: list[Captured] = []

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            entry = Captured(gm, [])
            found.append(entry)
            run = make_boxed_func(_copy(gm).forward)

            def remember(values: list[Any]) -> Any:
                entry.inputs = [_clone(value) for value in values]
                return run(values)

            remember._boxed_call = True  # type: ignore[attr-defined]
            return remember

        return capture_model(graph_module, example_inputs, compiler, compiler)

    torch.compile(model, backend=backend, fullgraph=fullgraph, dynamic=dynamic)(*args, **kwargs)
    return found


def run_stages(module: fx.GraphModule, **options: Any) -> GraphReport:
    """Fuse a graph in place and return its report; the reference target and no engine."""
    report = options.pop("report", None) or Report()
    graph = report.new_graph()
    fuse(module, fusion_for(Options.parse({"report": report, "targets": ("reference",), **options})), graph)
    return graph


def outputs_and_writes(module: fx.GraphModule, inputs: list[Any]) -> list[Any]:
    """What the graph returns, and its inputs as it leaves them."""
    returned = module(*inputs)
    return [*returned, *(value for value in inputs if isinstance(value, torch.Tensor))]


def same_bits(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether two lists of values are equal to the bit, NaN for NaN, in dtype, shape and stride."""
    return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    alike = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    return alike and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    return tensor.contiguous().view(integer) if tensor.is_floating_point() and integer else tensor


def listing(graph: fx.Graph) -> list[str]:
    """The graph node for node: operator, arguments, name."""
    return [f"{node.name} = {node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]
