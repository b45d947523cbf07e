"""The backend as a user meets it: by name, with options, on good and bad input."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from glmfuse import Kernel, Report, Target
from glmfuse.lowering.engines import Engine, eager
from glmfuse.lowering.targets import reference_for
from glmfuse.patterns import PATTERNS, rms_norm
from tests.support.glm import decode_static, fresh, prefill, tiny
from tests.support.graphs import same_bits

EAGER: dict[str, Any] = {"engine": "eager"}


def compiled(model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="glmfuse", options={**EAGER, **options})


BY_NAME = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).eval()
x = torch.randn(2, 8)
with torch.no_grad():
    expected = model(x)
    if {in_place}:
        model.compile(backend="glmfuse", options={{"engine": "eager"}})
        found = model(x)
    else:
        found = torch.compile(model, backend="glmfuse", options={{"engine": "eager"}})(x)
assert torch.equal(expected, found)
assert "glmfuse" in sys.modules
"""


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "model.compile"])
def test_a_process_that_never_imports_glmfuse_finds_it_by_name(in_place: bool) -> None:
    script = BY_NAME.format(in_place=in_place)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("phase", [prefill, decode_static])
def test_the_whole_backend_changes_no_bit(phase: Any) -> None:
    model = tiny(torch.bfloat16)
    arguments = phase(model)
    report = Report()
    expected = compiled(model, only=())(**fresh(arguments))
    torch._dynamo.reset()
    found = compiled(model, report=report)(**fresh(arguments))
    assert same_bits([found.logits], [expected.logits])
    assert report.count("chosen")["norm_qkv_rope"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engin": "eager"}, "unknown option: 'engin'. Valid: disable, engine,"),
        ({"disable": ("rmsnorm",)}, "unknown pattern in option 'disable': 'rmsnorm'. Valid: add_rms_norm,"),
        ({"only": ("x", "y")}, "'x', 'y'"),
        ({"expect": {"gate": 1}}, "unknown pattern in option 'expect': 'gate'"),
        ({"expect": {"gate_topk": -1}}, "takes counts"),
        ({"expect": 3}, "takes counts"),
        ({"engine": "cuda"}, "unknown engine: 'cuda'. Valid: eager, inductor"),
        ({"engine": 3}, "takes a string"),
        ({"targets": ("pypto2",)}, "unknown target: 'pypto2'. Valid:"),
        ({"targets": 5}, "takes a sequence of targets"),
        ({"verify": "yes"}, "takes True or False"),
        ({"fuel": -1}, "0 or more"),
        ({"engine_options": []}, "takes a mapping"),
        ({"engine_options": {"fast": True}}, "unknown engine option of 'eager': 'fast'"),
        ({"patterns": ("a",)}, "takes a sequence of patterns"),
    ],
)
def test_a_bad_option_is_an_error_that_names_the_valid_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="(?s)" + message.replace("(", r"\(")):
        compiled(nn.Linear(4, 4).eval(), **options)(torch.randn(2, 4))


def test_a_mode_is_refused() -> None:
    with pytest.raises(Exception, match="backend 'glmfuse' has no mode 'max-autotune'"):
        torch.compile(nn.Linear(4, 4), backend="glmfuse", mode="max-autotune")(torch.randn(2, 4))


def test_an_engine_that_is_not_there_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Engine("absent", eager.EAGER.compile, eager.EAGER.compile_unfused, lambda device: "install absent-1.0")
    monkeypatch.setattr("glmfuse.lowering.engines.choose.ENGINES", (absent, eager.EAGER))
    report = Report()
    torch.compile(nn.Linear(4, 4).eval(), backend="glmfuse", options={"report": report})(torch.randn(2, 4))
    assert report.graphs[0].engine == "eager"
    assert "engine 'absent' passed over: install absent-1.0" in str(report)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="engine 'absent' cannot be used: install absent-1.0"):
        torch.compile(nn.Linear(4, 4).eval(), backend="glmfuse", options={"engine": "absent"})(torch.randn(2, 4))


@pytest.mark.parametrize("engine", ["npugraph_ex", "torchair"])
def test_an_engine_for_another_device_is_refused_by_name_and_never_passed_over(engine: str) -> None:
    with pytest.raises(Exception, match=f"engine '{engine}' cannot be used: it compiles for npu, and the model is on"):
        compiled(nn.Linear(4, 4).eval(), engine=engine)(torch.randn(2, 4))
    torch._dynamo.reset()
    report = Report()
    torch.compile(nn.Linear(4, 4).eval(), backend="glmfuse", options={"report": report})(torch.randn(2, 4))
    assert engine not in str(report)


def test_a_target_that_is_not_there_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Target("absent", {}, unavailable=lambda: "install absent-1.0")
    monkeypatch.setattr("glmfuse.backend.TARGETS", (absent,))
    report = Report()
    compiled(nn.Linear(4, 4).eval(), report=report)(torch.randn(2, 4))
    assert "target 'absent' passed over: install absent-1.0" in str(report)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="target 'absent' cannot be used: install absent-1.0"):
        compiled(nn.Linear(4, 4).eval(), targets=("absent",))(torch.randn(2, 4))


def test_a_model_that_needs_grad_is_compiled_unfused_with_one_warning() -> None:
    model = tiny(torch.float32, num_hidden_layers=1)
    report = Report()
    with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logits = compiled(model, report=report)(**prefill(model)).logits
        logits.sum().backward()
    ours = [str(entry.message) for entry in caught if "glmfuse" in str(entry.message)]
    assert len(ours) == 1
    assert "torch.no_grad()" in ours[0]
    assert not report.count()
    model.zero_grad()


class Odd(nn.Module):
    """Takes what real models are called with besides tensors."""

    def forward(self, x: torch.Tensor, flag: bool, scale: float, name: str | None, items: list[Any]) -> torch.Tensor:
        y = x * scale if flag else x
        return (y + items[0]) if name else y


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(0, 8),
        torch.randn(3, 0),
        torch.randn(8, 3).t(),
        torch.randn(6, 16)[::2, ::2],
        torch.randn(3, 1).expand(3, 8),
    ],
    ids=["no rows", "no columns", "transposed", "strided", "expanded"],
)
def test_odd_inputs_run_as_eager(x: torch.Tensor) -> None:
    odd = Odd()
    arguments = (x, True, 0.5, "name", [2, None])
    assert same_bits([compiled(odd)(*arguments)], [odd(*arguments)])
    assert same_bits(
        compiled(lambda x: (rms_norm.function(x, x[:1].sum(0), 1e-5),))(x), [rms_norm.function(x, x[:1].sum(0), 1e-5)]
    )


def wrong_rms_norm(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
    """A kernel with a bug: eps ten times too large, and the last row skipped."""
    out = rms_norm.function(x, w, 10 * eps)
    out[..., -1, :] = 0
    return out


def test_verify_compares_every_site_on_every_call() -> None:
    model = tiny(torch.bfloat16)
    report = Report()
    run = compiled(model, verify=True, report=report)
    arguments = prefill(model)
    for _ in range(3):
        run(**arguments)
    (graph,) = report.graphs
    assert len(graph.verified) == graph.count("chosen").total()
    assert {entry.calls for entry in graph.verified.values()} == {3}
    assert all(entry.absolute == entry.relative == 0 for entry in graph.verified.values())
    assert "verified, largest error" in str(report)


def test_verify_catches_and_names_a_wrong_kernel() -> None:
    model = tiny(torch.bfloat16)
    broken = Target("broken", {"rms_norm": Kernel(wrong_rms_norm)})
    targets = (broken, reference_for(PATTERNS))
    report = Report()
    named = r"rms_norm at \w+ \(target broken\), output 0: relative L2 error"
    with pytest.raises(Exception, match=named) as caught:
        compiled(model, verify=True, targets=targets, report=report)(**prefill(model))
    assert "'disable': ('rms_norm',)" in str(caught.value)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=named):
        compiled(model, verify=True, targets=targets)(**prefill(model))
    assert max(entry.relative for entry in report.graphs[0].verified.values()) > 0.05


def test_a_kernel_of_a_users_target_runs_and_is_named_in_the_report() -> None:
    calls = []

    def kernel(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
        calls.append(x.shape)
        return rms_norm.function(x, w, eps)

    model = tiny(torch.bfloat16)
    target = Target("mine", {"rms_norm": Kernel(kernel)})
    report = Report()
    arguments = prefill(model)
    found = compiled(model, targets=(target, "reference"), report=report)(**arguments)
    assert len(calls) == 17  # inlined blocks do not keep a kernel from its sites
    assert {row.target for row in report.rows() if row.pattern == "rms_norm" and row.status == "chosen"} == {"mine"}
    # another test of this process may have made a target of the same name, whose ops are apart
    assert re.search(r"glmfuse_mine(_\d+)?\.rms_norm", report.graphs[0].bodies[0].fused)
    torch._dynamo.reset()
    assert same_bits([found.logits], [compiled(model, only=())(**arguments).logits])


def test_a_kernel_that_refuses_says_why_and_the_next_target_takes_the_site() -> None:
    model = tiny(torch.bfloat16)
    target = Target(
        "small", {"rms_norm": Kernel(rms_norm.function, supports_fn=lambda request: "hidden 64 exceeds 32")}
    )
    report = Report()
    compiled(model, targets=(target,), report=report)(**prefill(model))
    assert "small: hidden 64 exceeds 32" in " ".join(row.found for row in report.rows())
    assert not report.count("chosen")
    torch._dynamo.reset()
    report = Report()
    compiled(model, targets=(target, "reference"), report=report)(**prefill(model))
    assert report.count("chosen")["linear_add_rms_norm"] == 4


def test_expect_fails_the_compile_with_the_count_and_the_closest_miss() -> None:
    model = tiny(torch.bfloat16)
    with pytest.raises(BackendCompilerFailed, match="gate_topk: expected 99, found 3"):
        compiled(model, expect={"gate_topk": 99})(**prefill(model))
    torch._dynamo.reset()
    compiled(model, expect={"gate_topk": 3, "norm_qkv_rope": 4, "rms_norm": 17})(**prefill(model))


class TwoGraphs(nn.Module):
    """Two norms with a graph break between."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = rms_norm.function(x, self.w, 1e-5)
        torch._dynamo.graph_break()
        return rms_norm.function(x, self.w, 1e-5) + rms_norm.function(x * 2, self.w, 1e-5)


def test_expect_is_checked_in_each_graph() -> None:
    report = Report()
    compiled(TwoGraphs(), report=report)(torch.randn(2, 8))
    assert [graph.count()["rms_norm"] for graph in report.graphs] == [1, 2]
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match="(?s)graph 1 does not have.*rms_norm: expected 1, found 2"):
        compiled(TwoGraphs(), expect={"rms_norm": 1}, report=Report())(torch.randn(2, 8))


def test_expect_holds_through_recompiles() -> None:
    run = compiled(lambda x, w, flag: rms_norm.function(x, w, 1e-5) if flag else x + w, expect={"rms_norm": 1})
    run(torch.randn(2, 8), torch.randn(8), True)
    with pytest.raises(BackendCompilerFailed, match="rms_norm: expected 1, found 0"):
        run(torch.randn(2, 8), torch.randn(8), False)
