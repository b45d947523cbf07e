"""Of a captured graph and its fused sites: what is left to the engine, and what share of the cost that is."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.memory import looks_on, origin
from glmfuse.canonicalize.term import describe_op
from glmfuse.report.left_over import Cost, LeftOver
from glmfuse.rows import source_of

aten = torch.ops.aten

_ROWS_ALONE: Final = frozenset({aten.embedding.default, aten.index.Tensor, aten.index_select.default})
"""Operators that read of their first argument no more than they return."""

_ROOT: Final = re.compile(r"^[LG]\['\w+'\](\.__self__)?\.?")
"""How Dynamo calls the model itself."""

_PRODUCTS: Final = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "grouped_mm_fallback")
_ATTENTION: Final = "_scaled_dot_product"


def left_over(graph: fx.Graph, owned: Collection[str]) -> tuple[list[LeftOver], Cost]:
    """The operators that belong to no fused site, and the cost of the whole graph.

    owned: names of the nodes that fused sites replace. Views cost nothing and are not listed; sizes that
    vary count as they were when the graph was traced.
    """
    found: list[LeftOver] = []
    whole = Cost()
    for node in graph.nodes:
        if not _computes(node):
            continue
        cost = cost_of(node)
        whole += cost
        if node.name not in owned:
            found.append(LeftOver(node.name, describe_op(node.target), source_of(node), module_of(node), cost))
    return found, whole


def module_of(node: fx.Node) -> str:
    """The path of the model's module that a node comes from: `model.layers.1.self_attn`; empty where none is known."""
    stack = node.meta.get("nn_module_stack")
    path = _ROOT.sub("", str(next(reversed(stack.values()))[0])) if stack else ""
    return path.replace("[", ".").replace("]", "")


def cost_of(node: fx.Node) -> Cost:
    """Bytes of its arguments and results, and FLOPs: two for each multiply-add, else one for each result."""
    results = sum(_bytes(val) for val in _tensors(node.meta.get("val")))
    read = held = 0
    for position, source in enumerate(node.all_input_nodes):
        size = sum(_bytes(val) for val in _tensors(source.meta.get("val")))
        if position == 0 and node.target in _ROWS_ALONE:
            size = results
        read += size
        held += size if origin(source).op == "placeholder" else 0
    return Cost(read + results, held, _flops(node))


def _computes(node: fx.Node) -> bool:
    if node.op != "call_function" or not any(True for _ in _tensors(node.meta.get("val"))):
        return False
    is_call = isinstance(node.target, OpOverload | torch._ops.HigherOrderOperator)
    return is_call and not looks_on(node)


def _flops(node: fx.Node) -> int:
    name = getattr(node.target, "_opname", "")
    shapes = [_shape(val) for source in node.all_input_nodes for val in _tensors(source.meta.get("val"))]
    results = [_shape(val) for val in _tensors(node.meta.get("val"))]
    if name in _PRODUCTS:
        inner = (shapes[1] if "addmm" in name or "baddbmm" in name else shapes[0])[-1]
        return 2 * math.prod(results[0]) * inner
    if name.startswith(_ATTENTION):
        return 4 * math.prod(shapes[0]) * shapes[1][-2]
    return math.prod(results[0])


def _tensors(val: Any) -> Iterator[torch.Tensor]:
    if isinstance(val, torch.Tensor):
        yield val
    elif isinstance(val, (list, tuple)):
        for item in val:
            yield from _tensors(item)


def _bytes(val: torch.Tensor) -> int:
    return math.prod(_shape(val)) * val.dtype.itemsize


def _shape(val: torch.Tensor) -> tuple[int, ...]:
    """The sizes as traced; asking a symbol for its hint adds no guard."""
    return tuple(size if isinstance(size, int) else int(size.node.hint or 1) for size in val.shape)
