"""A tiny GLM under `backend="glmfuse"` with engine torchair, up to the GE graph that CANN would be given.

That CANN accepts and compiles the graph is not shown. The golden files are GE's operators in order; where a change is
meant, `python -m tests.offline_ascend.ge.test_engine`, run as `make test-ascend` runs the tests, writes them anew.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from glmfuse import Kernel, Report, Target, huggingface
from tests.offline_ascend.standin.ge_graph import operators, stopped
from tests.support.glm import BATCH, CACHE, PROMPT, tiny

GOLDEN = Path(__file__).parent / "golden"
FUSED = {
    "AddRmsNorm": 4,
    "FusedInferAttentionScore": 2,
    "GroupedMatmul": 2,
    "MoeFinalizeRoutingV2": 1,
    "MoeGatingTopK": 1,
    "MoeInitRoutingV3": 1,
    "RmsNorm": 5,
    "RotaryMul": 4,
    "SwiGlu": 1,
}


def on_npu() -> Any:
    return copy.deepcopy(tiny(torch.bfloat16, num_hidden_layers=2)).to("npu")


def prompt(model: Any) -> dict[str, Any]:
    ids = huggingface.random_tokens(model, BATCH, PROMPT)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def step(model: Any) -> dict[str, Any]:
    cache = huggingface.static_cache(model, BATCH, CACHE)
    model(huggingface.random_tokens(model, BATCH, PROMPT), **huggingface.call_with(model, cache))
    return {"input_ids": huggingface.random_tokens(model, BATCH, 1), **huggingface.call_with(model, cache)}


PHASES = {"prefill": (prompt, {}), "decode": (step, {"ScatterNdUpdate": 4})}


def converted(arguments: Any, **options: Any) -> list[str]:
    """The GE operators of the model's graph."""
    model = on_npu()
    given = {"engine": "torchair", "targets": ("aclnn",), **options}
    call = torch.compile(model, backend="glmfuse", fullgraph=True, options=given)
    with stopped() as graphs, torch.no_grad(), pytest.raises(Exception, match="_Converted"):
        call(**arguments(model))
    return operators(graphs[0])


@pytest.mark.parametrize("phase", PHASES)
def test_the_converted_graph_holds_the_fused_operators_in_this_order(phase: str) -> None:
    arguments, written = PHASES[phase]
    found = converted(arguments)
    assert {name: found.count(name) for name in {**FUSED, **written}} == {**FUSED, **written}
    assert found == (GOLDEN / f"{phase}.txt").read_text().split()


def test_options_of_torchair_are_set_by_their_path(tmp_path: Path) -> None:
    dump = {"debug.graph_dump.type": "txt", "debug.graph_dump.path": str(tmp_path)}
    converted(prompt, engine_options=dump)
    (written,) = tmp_path.iterdir()
    assert "AddRmsNorm" in written.read_text()


def test_the_converted_graph_computes_what_the_graph_did() -> None:
    """torchair's own eager run of what it converted, beside the same kernels without it."""
    model = on_npu()
    arguments = prompt(model)
    outputs = []
    for engine, options in (("eager", {}), ("torchair", {"debug.run_eagerly": True})):
        torch._dynamo.reset()
        given = {"engine": engine, "targets": ("aclnn",), "engine_options": options}
        outputs.append(torch.compile(model, backend="glmfuse", options=given)(**arguments).logits.cpu())
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_options": {"debug.no_such": 1}}, "unknown engine option of 'torchair': 'debug.no_such'"),
        ({"engine_options": {"clone_input": 1}}, "unknown engine option of 'torchair': 'clone_input'"),
        ({"targets": ("reference",)}, "it has no GE operator for a part of this graph"),
    ],
)
def test_what_torchair_cannot_do_is_said_with_what_to_do(options: dict[str, Any], message: str) -> None:
    model = on_npu()
    call = torch.compile(model, backend="glmfuse", options={"engine": "torchair", **options})
    with pytest.raises(Exception, match=message):
        call(**prompt(model))


def launched(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def test_a_target_of_own_launches_is_refused_when_it_is_named() -> None:
    own = Target("own", {"swiglu": Kernel(launched)})
    model = on_npu()
    call = torch.compile(model, backend="glmfuse", options={"engine": "torchair", "targets": (own, "aclnn")})
    with pytest.raises(Exception, match="target 'own' cannot be used.*engine 'torchair' has no operator for them"):
        call(**prompt(model))


def test_pypto_is_passed_over_with_the_reason_when_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmfuse.backend.TARGETS", (Target("own", {}), *_targets()))
    report = Report()
    converted(prompt, targets=None, report=report)
    assert "target 'own' passed over: its ops launch kernels of their own" in str(report)


def _targets() -> tuple[Target, ...]:
    from glmfuse.lowering.targets import TARGETS

    return TARGETS


if __name__ == "__main__":
    from tests.offline_ascend.standin import device, load

    load.load()
    device.install()
    for name, (arguments, _) in PHASES.items():
        (GOLDEN / f"{name}.txt").write_text("\n".join(converted(arguments)) + "\n")
