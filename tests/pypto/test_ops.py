"""Fused ops of the target `pypto`: torch.library's own checks, torch.export, and a model that generates with them.

The kernels run in PyPTO's interpreter on this CPU; nothing here ran on an NPU.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._ops import OpOverload

from glmfuse import Report, huggingface
from glmfuse.capture import as_tuple
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.patterns import BY_NAME
from tests.pypto.names import TAKEN
from tests.support.glm import tiny

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

BLOCKS = {"norm_qkv_rope": 4, "gate_topk": 3, "swiglu_mlp": 4}


def op_and_arguments(name: str) -> tuple[OpOverload, tuple[Any, ...]]:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16)
    reference = BY_NAME[name].overload(values)
    op = target.PYPTO.op(BY_NAME[name], reference)
    return op, tuple(values[argument.name] for argument in op._schema.arguments)


@pytest.mark.parametrize("name", TAKEN)
def test_torch_accepts_the_op(name: str) -> None:
    op, values = op_and_arguments(name)
    assert set(torch.library.opcheck(op, values).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", TAKEN)
def test_export_keeps_the_op(name: str) -> None:
    op, values = op_and_arguments(name)
    tensors = tuple(value for value in values if isinstance(value, torch.Tensor))

    class Call(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> Any:
            rest = iter(given)
            return op(*(next(rest) if isinstance(value, torch.Tensor) else value for value in values))

    program = torch.export.export(Call(), tensors)
    assert next(node.target for node in program.graph.nodes if node.op == "call_function") is op
    for ours, direct in zip(as_tuple(program.module()(*tensors)), as_tuple(op(*values)), strict=True):
        assert torch.equal(ours, direct)


def decode(model: Any, call: Any, forced: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """16 tokens of greedy decoding with a StaticCache, or along the tokens given, and the logits of each step."""
    cache = huggingface.static_cache(model, 2, 32)
    tokens, logits = [], []
    given = torch.tensor([[3, 141, 59, 26, 53, 58], [27, 182, 81, 82, 84, 59]])
    with torch.no_grad():
        for step in range(16):
            logits.append(call(input_ids=given, **huggingface.call_with(model, cache)).logits[:, -1].float())
            given = logits[-1].argmax(-1, keepdim=True) if forced is None else forced[:, step : step + 1]
            tokens.append(given)
    return torch.cat(tokens, dim=1), torch.stack(logits)


def compiled(model: Any, targets: tuple[str, ...], report: Report, **options: Any) -> Any:
    """Every captured graph must have all sites of the three blocks."""
    torch._dynamo.reset()
    options = {"engine": "eager", "targets": targets, "report": report, "expect": BLOCKS, **options}
    return torch.compile(model, backend="glmfuse", options=options)


def assert_no_other_target(report: Report) -> None:
    for graph in report.graphs:
        assert {name: graph.count("chosen")[name] for name in BLOCKS} == BLOCKS
    assert {row.target for row in report.rows() if row.status == "chosen"} == {"pypto"}


def test_sixteen_tokens_through_the_kernels_that_round_as_their_patterns() -> None:
    model, report = tiny(torch.bfloat16), Report()
    otherwise = [name for name, kernel in KERNELS.items() if not kernel.rounds_alike]
    tokens, _ = decode(model, compiled(model, ("pypto",), report, disable=otherwise))
    assert_no_other_target(report)
    reference, _ = decode(model, compiled(model, ("reference",), Report()))
    assert torch.equal(tokens, reference)


def test_sixteen_tokens_through_all_kernels_are_as_near_to_fp32_as_eager() -> None:
    """Along eager's tokens, with every expert taken: where a choice flips, the distance tells of nothing else."""
    model, report = tiny(torch.bfloat16, num_hidden_layers=2, num_experts_per_tok=8), Report()
    tokens, eager = decode(model, model)
    blocks = {"norm_qkv_rope": 2, "gate_topk": 1, "swiglu_mlp": 2, "attention": None}
    expect = {name: count for name, count in blocks.items() if count}
    ours = decode(model, compiled(model, ("pypto",), report, expect=expect), tokens)[1]
    assert {row.target for row in report.rows() if row.status == "chosen"} == {"pypto"}
    assert all(report.count("chosen")[name] for name in blocks)
    wide = copy.deepcopy(model).float()
    exact = decode(wide, wide, tokens)[1]
    assert torch.dist(ours, exact) <= torch.dist(eager, exact)
