"""Sizes that a graph reads off a tensor: whoever reads a size does not read the value.

Tracing reads a size off the first tensor that has it, be that deep inside a site, and all that has this size later
asks that one node. A size is an expression of the graph's arguments, so it outlives the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

aten = torch.ops.aten

_SIZES = frozenset(
    {aten.sym_size.int, aten.sym_stride.int, aten.sym_numel.default, aten.sym_storage_offset.default},
)
_ARITHMETIC = (sympy.Symbol, sympy.Integer, sympy.Add, sympy.Mul, sympy.Pow, FloorDiv)


def needs_no_tensor(node: fx.Node) -> bool:
    """Whether a node reads a size that follows from sizes among the graph's arguments.

    One that depends on data, such as how many numbers are not zero, has no other source.
    """
    val = node.meta.get("val")
    if node.target not in _SIZES or not isinstance(val, torch.SymInt):
        return False
    expr = val.node.expr
    is_arithmetic = all(isinstance(part, _ARITHMETIC) for part in sympy.preorder_traversal(expr))
    return is_arithmetic and expr.free_symbols <= _arguments(node.graph).keys()


def compute(node: fx.Node) -> None:
    """Put what the size is of the graph's arguments in the place of a node that `needs_no_tensor`."""
    graph = node.graph
    last = node.prev
    with graph.inserting_before(node):
        tracer = GraphAppendingTracer(graph)
        sizes = {symbol: fx.Proxy(argument, tracer) for symbol, argument in _arguments(graph).items()}
        size = sympy_interp(PythonReferenceAnalysis, sizes, node.meta["val"].node.expr)
    made = last.next
    while made is not node:
        args = fx.map_arg(made.args, lambda source: source.meta["val"])
        made.meta["val"] = made.target(*args)  # type: ignore[operator]
        made = made.next
    node.replace_all_uses_with(size.node if isinstance(size, fx.Proxy) else size)
    graph.erase_node(node)


def _arguments(graph: fx.Graph) -> Mapping[sympy.Symbol, fx.Node]:
    """The arguments that are sizes, by their symbols."""
    vals = {node: node.meta.get("val") for node in graph.find_nodes(op="placeholder")}
    return {
        val.node.expr: node
        for node, val in vals.items()
        if isinstance(val, torch.SymInt) and isinstance(val.node.expr, sympy.Symbol)
    }
