"""A function as the GE graph that torchair makes of it: through torchair's Python, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

OUTER = ("Data", "NetOutput", "Const")  # what every graph has around its operators


class _Converted(Exception):  # noqa: N818
    """Conversion is done; GE would come next."""


@contextmanager
def stopped() -> Iterator[list[Any]]:
    """Inside, torchair's compiler stops once a graph is converted; the list gets each."""
    from torchair.npu_fx_compiler import _NpuFxCompiler

    graphs: list[Any] = []
    original = _NpuFxCompiler._gen_compiled_gm

    def convert(self: Any, *args: Any) -> Any:
        graphs.append(original(self, *args).graph)
        raise _Converted

    _NpuFxCompiler._gen_compiled_gm = convert
    try:
        yield graphs
    finally:
        _NpuFxCompiler._gen_compiled_gm = original


def ge_graph(function: Callable[..., Any], *args: Any, dynamic: bool = False, backend: Any = None) -> Any:
    """The GE graph, torchair's protobuf, of a function compiled by torchair, or by a backend that hands on to it.

    Raises:
        Exception: whatever kept torchair from converting, an operator without a converter among it.
    """
    import torchair

    torch._dynamo.reset()
    with stopped() as graphs, torch.no_grad():
        compiled = torch.compile(
            function, backend=backend or torchair.get_npu_backend(), fullgraph=True, dynamic=dynamic
        )
        try:
            compiled(*args)
        except Exception:
            if not graphs:
                raise
    return graphs[0]


def operators(graph: Any) -> list[str]:
    """The graph's operator types in order, without its inputs, constants and outputs."""
    return [op.type for op in graph.op if op.type not in OUTER]
