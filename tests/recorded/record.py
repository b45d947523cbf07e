"""Record the graphs of a tiny GLM-4.5 in the environment at hand: `python -m tests.recorded.record`.

It needs one version of transformers that is not the newest, and the torch of the tests. The files go to a folder
of that version beside this one; tests/test_versions.py reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import fx

from glmfuse import huggingface
from glmfuse.capture import capture_model
from tests.support.glm import decode_dynamic, decode_static, prefill
from tests.support.recorded import write

HERE = Path(__file__).parent
LAYERS = 2
GROUPS = {"n_group": 2, "topk_group": 1}
DENSE = {"first_k_dense_replace": LAYERS}


@dataclass(frozen=True)
class Case:
    """One graph: how the model is called, built and stored."""

    phase: Callable[[Any], dict[str, Any]]
    experts: str = "grouped_mm"
    dtype: torch.dtype = torch.bfloat16
    config: dict[str, Any] = field(default_factory=dict)


CASES = {
    "prefill": Case(prefill),
    "decode_static": Case(decode_static),
    "decode_dynamic": Case(decode_dynamic),
    "decode_batched": Case(decode_static, "batched_mm"),
    "decode_fp32": Case(decode_static, dtype=torch.float32),
    "decode_groups": Case(decode_static, config=GROUPS),
}
LOOPING = {
    "prefill_dense": Case(prefill, config=DENSE),
    "decode_static_dense": Case(decode_static, config=DENSE),
    "decode_dynamic_dense": Case(decode_dynamic, config=DENSE),
    "prefill_router": Case(prefill),
    "prefill_router_groups": Case(prefill, config=GROUPS),
}
"""transformers 4 loops over the experts that tokens chose, which breaks its graph: of that, the piece before."""


@dataclass
class Fragment:
    """A graph that Dynamo found, with the names and values of what it reads."""

    module: fx.GraphModule
    names: list[str]
    inputs: list[torch.Tensor]

    def has_router(self) -> bool:
        """Whether it chooses experts."""
        return any(node.target is torch.ops.aten.topk.default for node in self.module.graph.nodes)


def fragments(model: Callable[..., Any], arguments: dict[str, Any], fullgraph: bool) -> list[Fragment]:
    """The graphs of one call, by the road that the backend takes."""
    found: list[Fragment] = []

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        holders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        names = [node.meta["grapharg"].source.name for node in holders]
        values = [value.detach().clone() for value in example_inputs]

        def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            found.append(Fragment(gm, [str(name() if callable(name) else name) for name in names], values))
            return gm.forward

        return capture_model(graph_module, example_inputs, compiler, compiler)

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=fullgraph, dynamic=False)(**arguments)
    return found


def called(case: Case) -> tuple[Any, dict[str, Any]]:
    """The model of a case, and the arguments of its call."""
    torch.manual_seed(0)
    config = huggingface.make_config(huggingface.TINY, num_hidden_layers=LAYERS, **case.config)
    config._experts_implementation = case.experts
    model = huggingface.build(config, case.dtype)
    return model, case.phase(model)


def record(name: str, case: Case, fullgraph: bool) -> None:
    """Write the graph of a case, of several the one with the router, or the longest; or say why there is none."""
    try:
        model, arguments = called(case)
        found = fragments(model, arguments, fullgraph)
    except Exception as error:  # not every version takes every case
        print(f"{name}: none, {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
        return
    wanted = max(found, key=lambda fragment: (fragment.has_router(), len(fragment.module.graph.nodes)))
    path = HERE / transformers.__version__ / f"{name}.json"
    write(path, wanted.module, wanted.names, wanted.inputs)
    print(f"{name}: {len(wanted.module.graph.nodes)} nodes, {len(found)} graphs")


def main() -> None:
    """Record what this version of transformers has."""
    torch._dynamo.config.ignore_logging_functions.add(logging.Logger.debug)
    loops = transformers.__version__ < "5"
    with torch.no_grad():
        for name, case in (LOOPING if loops else CASES).items():
            record(name, case, fullgraph=not loops)


if __name__ == "__main__":
    main()
