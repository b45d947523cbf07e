"""Models that Dynamo breaks: each piece is fused, nothing is lost, and the user is told once what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from glmfuse import Report, breaks
from tests.support.glm import decode_static, fresh, tiny

LAYERS = 2


@pytest.fixture
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaks, "_told", set())
    monkeypatch.setattr(breaks, "_met", {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def run(model: Any, report: Report, **arguments: Any) -> tuple[Any, list[str]]:
    """What the compiled model returns, and what glmfuse warned of."""
    compiled = torch.compile(model, backend="glmfuse", options={"engine": "eager", "report": report})
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compiled(**arguments)
    return found, [str(item.message) for item in caught if str(item.message).startswith("glmfuse:")]


@pytest.mark.usefixtures("nothing_told")
def test_experts_in_a_loop_over_the_data() -> None:
    model, report = tiny(torch.bfloat16, num_hidden_layers=LAYERS, experts="eager"), Report()
    with torch.no_grad():
        arguments = decode_static(model)
        expected = model(**fresh(arguments)).logits
    found, told = run(model, report, **fresh(arguments))
    assert torch.equal(found.logits, expected)
    assert len(report.graphs) > 2
    chosen = report.count("chosen")
    assert (chosen["norm_qkv_rope"], chosen["attention"], chosen["cache_update"]) == (LAYERS, LAYERS, 2 * LAYERS)
    assert chosen["gate_topk"] == chosen["swiglu_mlp"] - 1 == LAYERS - 1
    (message,) = told
    assert "model.set_experts_implementation('grouped_mm')" in message
    assert message.removeprefix("glmfuse: ") in report.notes


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.silu(self.w(x)) * x
        torch._dynamo.graph_break()
        return torch.nn.functional.silu(self.w(x)) * x


@pytest.mark.usefixtures("nothing_told")
def test_any_other_break() -> None:
    model, report, x = Broken().eval(), Report(), torch.randn(2, 8)
    found, told = run(model, report, x=x)
    with torch.no_grad():
        assert torch.equal(found, model(x))
    assert report.count("chosen")["swiglu"] == 2
    (message,) = told
    assert "fullgraph=True" in message
    torch._dynamo.reset()
    assert run(Broken().eval(), Report(), x=x)[1] == []


@pytest.mark.usefixtures("nothing_told")
def test_breaks_of_one_model_are_not_told_of_another() -> None:
    run(Broken().eval(), Report(), x=torch.randn(2, 8))
    report = Report()
    run(nn.Linear(8, 8).eval(), report, input=torch.randn(2, 8))
    assert report.graphs
    assert not any("pieces" in note for note in report.notes)


@pytest.mark.usefixtures("nothing_told")
def test_a_whole_model_is_told_nothing() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS)
    report = Report()
    with torch.no_grad():
        arguments = decode_static(model)
    assert run(model, report, **arguments)[1] == []
    assert not any("pieces" in note for note in report.notes)


def test_set_experts_implementation_is_what_transformers_calls_it() -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=LAYERS, experts="eager")
    model.set_experts_implementation("grouped_mm")
    assert model.config._experts_implementation == "grouped_mm"
    model.set_experts_implementation("eager")
