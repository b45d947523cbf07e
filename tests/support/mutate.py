"""Graphs that differ from a captured one in one thing, made mechanically."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from glmfuse.report.report import GraphReport
from tests.support.graphs import Captured, outputs_and_writes, run_stages, same_bits

aten = torch.ops.aten

OTHER_OPS = {
    aten.silu.default: aten.gelu.default,
    aten.sigmoid.default: aten.tanh.default,
    aten.rsqrt.default: aten.sqrt.default,
    aten.neg.default: aten.abs.default,
    aten.mul.Tensor: aten.add.Tensor,
    aten.div.Tensor: aten.mul.Tensor,
    aten.bitwise_not.default: aten.clone.default,
    aten.round.default: aten.floor.default,
    aten.amax.default: aten.amin.default,
    aten.reciprocal.default: aten.neg.default,
    aten.bitwise_xor.Scalar: aten.bitwise_or.Scalar,
    aten.bitwise_and.Scalar: aten.bitwise_xor.Scalar,
    aten.__rshift__.Scalar: aten.__lshift__.Scalar,
    aten.sub.Tensor: aten.add.Tensor,
}
ORDERED = (aten.div.Tensor, aten.cat.default)
DTYPES = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float16,
    torch.bool: torch.int64,
    torch.int32: torch.float32,
    torch.int8: torch.uint8,
    torch.float8_e4m3fn: torch.float8_e5m2,
}


@dataclass(frozen=True)
class Mutation:
    """What is changed at which node; `apply` edits a copy of the graph."""

    kind: str
    node: str
    apply: Callable[[fx.Node], None]

    def __str__(self) -> str:
        return f"{self.kind} at {self.node}"


def mutations(graph: fx.Graph, names: Container[str]) -> Iterator[Mutation]:
    """Every mutation of the operators named, in the order of the graph."""
    for node in graph.nodes:
        if node.name in names and isinstance(node.target, OpOverload):
            for kind, apply in _of(node):
                yield Mutation(f"{kind} of {node.target}", node.name, apply)


def mutate(captured: Captured, mutation: Mutation) -> fx.GraphModule | None:
    """The mutated graph with its fake values made anew; None where it no longer is a graph that runs.

    Shapes and dtypes must come out as they were: CPU kernels crash on some that fake tensors let pass.
    """
    module = captured.module()
    node = next(node for node in module.graph.nodes if node.name == mutation.node)
    mutation.apply(node)
    placeholders = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    mode = next(val.fake_mode for val in placeholders if isinstance(val, torch.Tensor))
    try:
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*placeholders)
    except Exception:  # a shape or dtype that no longer fits: not a graph
        return None
    results = _layouts(next(iter(reversed(captured.graph_module.graph.nodes))))
    if _layouts(next(iter(reversed(module.graph.nodes))))[: len(results)] != results or _attends_otherwise(
        module, captured
    ):
        return None
    module.recompile()
    return module


def fused_mutant(captured: Captured, edit: Callable[[fx.Graph], None]) -> GraphReport:
    """Fuse the mutant; its outputs are its own to the bit, and not the captured graph's."""
    first = next(iter(captured.graph_module.graph.nodes)).name
    mutant = mutate(captured, Mutation(edit.__name__, first, lambda node: edit(node.graph)))
    assert mutant is not None
    expected = outputs_and_writes(mutant, captured.arguments())
    assert not same_bits(expected, outputs_and_writes(captured.module(), captured.arguments()))
    report = run_stages(mutant)
    mutant.recompile()
    assert same_bits(outputs_and_writes(mutant, captured.arguments()), expected)
    return report


def _layouts(node: fx.Node) -> list[Any]:
    vals = [source.meta["val"] for source in node.all_input_nodes]
    return [(val.shape, val.dtype) for val in vals if isinstance(val, torch.Tensor)]


def _attends_otherwise(module: fx.GraphModule, captured: Captured) -> bool:
    """Whether any operator that is not mutated gets tensors of other shapes or dtypes."""
    before = {node.name: node for node in captured.graph_module.graph.nodes}
    return any(
        _layouts(node) != _layouts(before[node.name])
        for node in module.graph.nodes
        if node.op == "call_function" and "attention" in node.name and node.name in before
    )


def _of(node: fx.Node) -> Iterator[tuple[str, Callable[[fx.Node], None]]]:
    yield from _literals(node)
    yield from _keywords(node)
    if node.target in OTHER_OPS:
        yield "operator", _other_op
    if node.target in ORDERED:
        yield "operand order", _reverse
    if node.target is aten._to_copy.default and node.kwargs["dtype"] in DTYPES:
        yield "dtype", _other_dtype
    if len(node.all_input_nodes) and _same_kind(node, node.all_input_nodes[0]):
        yield "absence", _skip
    if isinstance(node.meta.get("val"), torch.Tensor):
        yield "extra user", _return_too


def _literals(node: fx.Node) -> Iterator[tuple[str, Callable[[fx.Node], None]]]:
    for position, value in enumerate(node.args):
        if isinstance(value, bool):
            yield f"literal {position}", _set(position, not value)
        elif isinstance(value, float):
            yield f"literal {position}", _set(position, 0.75 if value in (float("-inf"), 1.0) else value * 3 + 0.1)
        elif isinstance(value, int):
            for other in (value + 1, value - 1):
                yield f"literal {position}", _set(position, other)
        elif isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            yield f"literal {position}", _set(position, [value[0] - 1, *value[1:]])


def _keywords(node: fx.Node) -> Iterator[tuple[str, Callable[[fx.Node], None]]]:
    given = {argument.name for argument in node.target._schema.arguments[: len(node.args)]} | set(node.kwargs)  # type: ignore[union-attr]
    for argument in node.target._schema.arguments:  # type: ignore[union-attr]
        if argument.name in given or not argument.has_default_value():
            continue
        default = argument.default_value
        if isinstance(default, bool) and argument.name not in ("non_blocking", "pin_memory"):
            yield f"keyword {argument.name}", _keyword(argument.name, not default)
        elif argument.name in ("alpha", "beta") or argument.name == "step":
            yield f"keyword {argument.name}", _keyword(argument.name, 2)


def _set(position: int, value: Any) -> Callable[[fx.Node], None]:
    return lambda node: node.update_arg(position, value)


def _keyword(name: str, value: Any) -> Callable[[fx.Node], None]:
    return lambda node: node.update_kwarg(name, value)


def _other_op(node: fx.Node) -> None:
    node.target = OTHER_OPS[node.target]  # type: ignore[index]


def _reverse(node: fx.Node) -> None:
    if isinstance(node.args[0], (list, tuple)):
        node.update_arg(0, list(reversed(node.args[0])))
    else:
        node.args = tuple(reversed(node.args))


def _other_dtype(node: fx.Node) -> None:
    node.update_kwarg("dtype", DTYPES[node.kwargs["dtype"]])  # type: ignore[index]


def _skip(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])


def _return_too(node: fx.Node) -> None:
    output = next(iter(reversed(node.graph.nodes)))
    output.args = ([*output.args[0], node],)


def _same_kind(node: fx.Node, source: fx.Node) -> bool:
    ours, theirs = node.meta.get("val"), source.meta.get("val")
    tensors = isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    return tensors and ours.shape == theirs.shape and ours.dtype == theirs.dtype
