"""From functions to aten graphs: the model by functorch's AOT, patterns by the tracer that AOT runs on.

Both give the same spelling, operator for operator (`decompositions=None`); the tests hold them together.
Patterns are pure, so AOT's functionalisation would add time (three times as much) and no meaning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import sympy
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes


class Compiler(Protocol):
    """Makes a boxed callable of an aten graph; the arguments have the names that AOT uses."""

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The compiled graph."""


def capture_model(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    compiler: Compiler,
    training: Compiler,
    decompositions: Mapping[OpOverload, Callable[..., Any]] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Lower a Dynamo graph to aten and give it to `compiler`.

    Forward and backward of a graph that needs grad after all, since it enables it inside, go to `training`.
    Nothing is decomposed but what an engine asks for; writes to inputs stay in the graph as `copy_`. A
    symbolic float, which `dynamic=True` makes of every eps and scale, is fixed at its value: that adds the
    guard on the Python float which Dynamo would have added without `dynamic`. AOT then asks Dynamo, by an
    exception that must pass, to trace once more with these floats as constants.
    """
    for node in graph_module.graph.nodes:
        if isinstance(value := node.meta.get("example_value"), torch.SymFloat):
            float(value)
    return aot_module_simplified(
        graph_module,
        list(example_inputs),
        fw_compiler=training,
        inference_compiler=compiler,
        decompositions=dict(decompositions),
        keep_inference_input_mutations=True,
    )


def nodes_in(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of a graph, and of the graphs that its higher-order operators call."""
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield from inner.graph.nodes


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """What a function of one or several results returns."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def device_of(values: Iterable[Any]) -> str:
    """The kind of device that a graph of these values computes on; a CPU's may be among those of another."""
    kinds = (value.device.type for value in values if isinstance(value, torch.Tensor))
    return next((kind for kind in kinds if kind != "cpu"), "cpu")


def static_inputs(count: int) -> frozenset[int]:
    """Places among the first inputs of AOT's graph whose memory stays where it is, as AOT says at its compiler's call.

    Weights and buffers, and what `torch._dynamo.mark_static_address` named, as a StaticCache does with its tensors.
    """
    context = TracingContext.try_get()
    metadata = context and context.fw_metadata
    return frozenset(place for place in (metadata and metadata.static_input_indices) or () if place < count)


def weights_among(graph: fx.Graph, example_inputs: Sequence[Any]) -> frozenset[int]:
    """Places among the arguments of AOT's graph that are parameters among Dynamo's inputs.

    Empty where AOT does not say which input an argument is.
    """
    found = set()
    for place, node in enumerate(node for node in graph.nodes if node.op == "placeholder"):
        index = getattr(node.meta.get("desc"), "idx", None)
        if index is not None and isinstance(example_inputs[index], torch.nn.Parameter):
            found.add(place)
    return frozenset(found)


def trace(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The aten graph of `function(*inputs)`, inference only; the inputs are fake tensors of one mode.

    That mode is entered, as AOT does, for the tensors that operators make of numbers alone.
    """
    with isolated(), torch.no_grad(), detect_fake_mode(inputs) or contextlib.nullcontext():
        return make_fx(function, tracing_mode="real", _allow_non_fake_inputs=False)(*inputs)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Step out of the compilation that is under way: no mode of its, no guard reaches it."""
    with tracing(None), _disable_current_modes():
        yield


class Fresh:
    """Fake tensors over fresh symbols, so that tracing adds guards here and never to the model."""

    def __init__(self, hints: Mapping[sympy.Symbol, int] | None = None) -> None:
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env)
        self._fresh = {symbol: self._symbol(index, hint) for index, (symbol, hint) in enumerate((hints or {}).items())}
        self._hints = {self._fresh[symbol]: max(hint, 2) for symbol, hint in (hints or {}).items()}

    def _symbol(self, index: int, hint: int) -> sympy.Symbol:
        source = ConstantSource(f"__glmfuse_size_{index}")
        symbol = self.shape_env.create_symbol(max(hint, 2), source=source, dynamic_dim=DimDynamic.DYNAMIC)
        size: Any = self.shape_env.create_symintnode(symbol, hint=max(hint, 2))
        return size.node.expr

    def empty(
        self,
        shape: Sequence[int | sympy.Expr],
        stride: Sequence[int | sympy.Expr] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:
        """A fake tensor; sizes and strides may be expressions of the symbols given as hints."""
        with isolated(), self.mode:
            size = [self._size(item) for item in shape]
            if stride is None:
                return torch.empty(size, dtype=dtype, device=device)
            return torch.empty_strided(size, [self._size(item) for item in stride], dtype=dtype, device=device)

    def _size(self, size: int | sympy.Expr) -> int | torch.SymInt:
        if isinstance(size, int):
            return size
        expr = size.xreplace(self._fresh)
        return self.shape_env.create_symintnode(expr, hint=int(expr.xreplace(self._hints)))

    def theirs(self, expr: sympy.Expr) -> sympy.Expr:
        """An expression of the fresh symbols in the symbols that they stand for."""
        return expr.xreplace({fresh: symbol for symbol, fresh in self._fresh.items()})

    def guards(self) -> tuple[sympy.Basic, ...]:
        """What tracing took for granted, in the symbols that the fresh ones stand for."""
        return tuple(self.theirs(guard.expr) for guard in self.shape_env.guards)
