"""Aten graphs as data: written where one version of transformers is installed, rebuilt where another one is.

A file is JSON with a node on each line: name, operator, arguments, keywords, layouts, line of the model. The
tensors that a graph reads are not kept, but for integers: those are tokens, positions and counters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from glmfuse.rows import source_of
from tests.support.graphs import Captured, laid_out


def write(path: Path, module: fx.GraphModule, names: Sequence[str], inputs: Sequence[torch.Tensor]) -> None:
    """Write a graph of functions and the inputs that it was traced with; `names` say what these are."""
    by_kind: dict[str, list[fx.Node]] = {"placeholder": [], "get_attr": [], "call_function": [], "output": []}
    for node in module.graph.nodes:
        by_kind[node.op].append(node)
    lines = list(dict.fromkeys(_line_of(node) for node in by_kind["call_function"]))
    rows = {
        "lines": lines,
        "inputs": [_input(*each) for each in zip(by_kind["placeholder"], names, inputs, strict=True)],
        "constants": [_constant(node, getattr(module, str(node.target))) for node in by_kind["get_attr"]],
        "nodes": [_node(node, lines) for node in by_kind["call_function"]],
        "outputs": [_encode(by_kind["output"][0].args[0])],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = (f'"{key}": [\n{_lines(values)}\n]' for key, values in rows.items())
    path.write_text("{" + ",\n".join(blocks) + "}\n")


def _lines(values: Sequence[Any]) -> str:
    return ",\n".join(json.dumps(value, separators=(",", ":")) for value in values)


def _input(holder: fx.Node, name: str, value: torch.Tensor) -> list[Any]:
    known = _filled(value) if value.is_floating_point() else value.tolist()
    return [holder.name, name, _layout(holder.meta["val"]), known]


def _filled(value: torch.Tensor) -> list[int]:
    """The sizes of the part outside of which all is zero: transformers 5.0 reads off a cache how full it is."""
    places = value.nonzero()
    return (places.amax(0) + 1).tolist() if len(places) else [0] * value.dim()


def _constant(node: fx.Node, value: torch.Tensor) -> list[Any]:
    return [node.name, _layout(value), value.tolist()]


def _node(node: fx.Node, lines: list[str]) -> list[Any]:
    val = node.meta["val"]
    layouts = [_layout(part) for part in val] if isinstance(val, list | tuple) else _layout(val)
    line = lines.index(_line_of(node))
    return [node.name, _target_name(node.target), _encode(node.args), _encode(dict(node.kwargs)), layouts, line]


def _line_of(node: fx.Node) -> str:
    return source_of(node).partition(" ")[0]


def _target_name(target: Any) -> str:
    return str(target) if isinstance(target, OpOverload) else target.__name__


def _layout(value: Any) -> str | None:
    """bfloat16[2,7,64], with the strides behind a slash where they are not those of a fresh tensor."""
    if not isinstance(value, torch.Tensor):
        return None
    text = f"{str(value.dtype)[6:]}[{','.join(map(str, value.shape))}]"
    return text if value.is_contiguous() else f"{text}/{','.join(map(str, value.stride()))}"


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, torch.device):
        return f"device {value}"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{value!r} has no place in a file")


def read(path: Path) -> Captured:
    """The graph with fake values made anew, each compared with the layout written, and inputs to run it on."""
    rows = json.loads(path.read_text())
    reader = _Reader()
    inputs = [reader.placeholder(*row) for row in rows["inputs"]]
    for name, layout, value in rows["constants"]:
        reader.constant(name, torch.tensor(value, dtype=_dtype(layout)))
    for name, target, args, kwargs, layouts, line in rows["nodes"]:
        reader.call(name, _target(target), args, kwargs, layouts, rows["lines"][line])
    reader.graph.output(reader.decode(rows["outputs"][0]))
    return Captured(fx.GraphModule(reader.root, reader.graph), inputs)


class _Reader:
    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.nodes: dict[str, fx.Node] = {}
        self.mode = FakeTensorMode()
        self.generator = torch.Generator().manual_seed(0)

    def placeholder(self, name: str, source: str, layout: str, known: Any) -> torch.Tensor:
        """A placeholder, and a tensor for it: the one recorded, or random numbers of a model's size."""
        dtype = _dtype(layout)
        full = self._drawn(source, layout, known) if dtype.is_floating_point else torch.tensor(known)
        value = laid_out(full.to(dtype), _sizes(layout)[1])
        node = self.nodes[name] = self.graph.placeholder(name)
        node.meta["val"] = self.mode.from_tensor(value)
        return value

    def _drawn(self, source: str, layout: str, filled: list[int]) -> torch.Tensor:
        shape = _sizes(layout)[0]
        drawn = torch.randn(shape, generator=self.generator)
        if "norm" in source:
            drawn = 1 + 0.2 * drawn
        elif "weight" in source or "proj" in source:
            drawn = drawn / math.sqrt(shape[-1])
        part = tuple(slice(size) for size in filled)
        zeros = torch.zeros(shape)
        zeros[part] = drawn[part]
        return zeros

    def constant(self, name: str, value: torch.Tensor) -> None:
        """A tensor that the graph holds by itself."""
        self.root.register_buffer(name, value)
        node = self.nodes[name] = self.graph.get_attr(name)
        node.meta["val"] = self.mode.from_tensor(value)

    def call(self, name: str, target: Any, args: Any, kwargs: Any, layouts: Any, line: str) -> None:
        """A call under its own name, whose fake value lies as the recorded one did."""
        node = self.graph.create_node("call_function", target, tuple(self.decode(args)), self.decode(kwargs), name)
        assert node.name == name
        given, named = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        with self.mode:
            val = node.meta["val"] = target(*given, **named)
        found = [_layout(part) for part in val] if isinstance(val, list | tuple) else _layout(val)
        if found != layouts:
            raise ValueError(f"{name} = {target} was {layouts} and is {found}")
        file, _, number = line.partition(":")
        node.meta["stack_trace"] = f'  File "{file}", line {number}, in forward\n    {target}\n'
        self.nodes[name] = node

    def decode(self, value: Any) -> Any:
        """The argument that was written so."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if isinstance(value, dict):
            return {name: self.decode(item) for name, item in value.items()}
        if not isinstance(value, str):
            return value
        if value.startswith("%"):
            return self.nodes[value[1:]]
        kind, _, name = value.replace(" ", ".").partition(".")
        return torch.device(name) if kind == "device" else getattr(torch, name)


def _target(name: str) -> Any:
    if name == "getitem":
        import operator

        return operator.getitem
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _dtype(layout: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, layout.partition("[")[0])
    return dtype


def _sizes(layout: str) -> tuple[list[int], list[int]]:
    shape, _, stride = layout.partition("[")[2].partition("]")
    sizes = [int(size) for size in shape.split(",") if size]
    if stride:
        return sizes, [int(step) for step in stride[1:].split(",")]
    return sizes, list(torch.empty(sizes, device="meta").stride())
