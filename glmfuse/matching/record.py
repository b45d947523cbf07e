"""The aten graph of a function on fake tensors of known sizes, noted operator by operator as they are called.

`make_fx` makes the same graph at more than twice the cost, since it follows sizes as well. Whatever is no operator on
tensors of known sizes is left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed
from torch.utils._pytree import tree_leaves, tree_map_only

from glmfuse.capture import isolated


class _NotRecordedError(Exception):
    """The function does something that only a tracer of sizes and constants follows."""


def record(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> fx.Graph | None:
    """The aten graph of `function(*inputs)`, inference only; the inputs are fake tensors of one mode.

    None where there are constants, symbolic sizes or results that are no tensors.
    """
    if any(_is_symbolic(size) for value in inputs for size in (*value.shape, *value.stride())):
        return None
    recorder = _Recorder(inputs)
    try:
        with isolated(), torch.no_grad(), detect_fake_mode(inputs) or nullcontext(), recorder:
            results = function(*inputs)
        recorder.graph.output(recorder.nodes(results))
    except _NotRecordedError:
        return None
    return recorder.graph


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.graph = fx.Graph()
        self._node: dict[int, fx.Node] = {}
        self._held: list[torch.Tensor] = []
        for index, value in enumerate(inputs):
            self._define(self.graph.placeholder(f"arg{index}"), value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not isinstance(func, OpOverload) or any(map(_is_symbolic, leaves)):
            raise _NotRecordedError
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if autograd_would_have_decomposed(func, leaves):
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        node = self.graph.call_function(func, self.nodes(args), self.nodes(kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self._define(node, result)
            return result
        if not isinstance(result, tuple | list):
            raise _NotRecordedError
        node.meta["val"] = result
        for index, value in enumerate(result):
            if isinstance(value, torch.Tensor):
                self._define(self.graph.call_function(operator.getitem, (node, index)), value)
        return result

    def nodes(self, values: Any) -> Any:
        """Arguments with the node of each tensor in its place."""
        return tree_map_only(torch.Tensor, self._node_of, values)

    def _node_of(self, value: torch.Tensor) -> fx.Node:
        if id(value) not in self._node:
            raise _NotRecordedError  # a constant of the function
        return self._node[id(value)]

    def _define(self, node: fx.Node, value: torch.Tensor) -> None:
        node.meta["val"] = value
        self._node[id(value)] = node
        self._held.append(value)  # so that no other tensor gets its id


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
