"""What planning believes of PyPTO kernels: the committed table of simulated times, and what comes of it.

The times are PyPTO's cost model's; nothing here was measured on a chip.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glmfuse import Report
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.apart import launches_apart
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry, layouts
from glmfuse.lowering.pypto.gain import _table, gain
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import site_of
from glmfuse.lowering.pypto.timing import WHOLE_L1, Simulator, stages_floor
from glmfuse.patterns import swiglu_mlp
from tests.pypto.names import TAKEN

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

TP8 = "glm-4.5/tp8"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "pypto_times.json"
BEFORE = {
    # Prototypes, us at 1, 8 and 32 tokens: tiles up to the whole of L1, and up to half of it.
    "norm_qkv_rope": ((30.4, 34.2, 41.5), (32.0, 37.4, 42.6)),
    "swiglu_mlp": ((23.8, 23.9, 30.3), (25.3, 25.4, 31.9)),
    "add_rms_norm": ((6.8, 8.3, 10.6), (6.8, 8.3, 10.6)),
}


def rows() -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(row["kernel"], row["shape"], row["tokens"]): row for row in json.loads(RESULTS.read_text())["rows"]}


@pytest.mark.parametrize("name", BEFORE)
def test_every_figure_is_below_the_prototype(name: str) -> None:
    for index, tokens in enumerate((1, 8, 32)):
        row = rows()[name, TP8, tokens]
        whole, half = (column[index] for column in BEFORE[name])
        assert row["whole_l1"] < whole
        assert row["window"] < half


def test_the_router_is_below_the_prototype_which_read_x_in_fp32() -> None:
    """The committed figures are of a half model, whose x has to be cast to the router's fp32 first."""
    simulator = Simulator()
    for tokens, whole, half in ((1, 14.5, 17.7), (8, 14.6, 17.8), (32, 19.6, 21.2)):
        values = arguments("gate_topk", geometry(TP8), tokens, torch.float32)
        for chip, before in ((WHOLE_L1, whole), (ASCEND_910B, half)):
            assert simulator.simulation(KERNELS["gate_topk"].launch(chip, **values)).window < before


@pytest.mark.parametrize("name", TAKEN)
def test_the_committed_figures_are_those_of_the_kernels(name: str) -> None:
    values = arguments(name, geometry(TP8), 8, torch.bfloat16)
    found = Simulator().simulation(KERNELS[name].launch(ASCEND_910B, **values))
    row = rows()[name, TP8, 8]
    assert row["window"] == round(found.window, 1)
    assert row["stages_floor"] == round(stages_floor(ASCEND_910B, found), 1) <= row["window"]


@pytest.mark.parametrize("name", TAKEN)
def test_the_table_tells_of_every_shape_of_the_family(name: str) -> None:
    parts = launches_apart(ASCEND_910B, name, arguments(name, geometry("tiny"), 3, torch.bfloat16))
    for shape in ("glm-4.5/tp8", "glm-4.7/tp16", "glm-4.5-air/tp8"):
        for tokens in (1, 7, 32, 300):
            found = gain(site_of(name, layouts(name, geometry(shape), tokens, torch.bfloat16)))
            assert found.basis.startswith("simulated") == bool(parts), found


def test_a_gain_has_every_launch() -> None:
    free, dear = (gain(site_of("swiglu_mlp", values(8), launch_us)) for launch_us in (0.0, 5.0))
    row = next(row for row in _table()["swiglu_mlp"][TP8] if row.tokens == 8)
    assert (free.fused, free.separate) == (row.fused, row.apart)
    assert (dear.fused, dear.separate) == (row.fused + 5, row.apart + row.kernels * 5)


def values(tokens: int) -> dict[str, Any]:
    return layouts("swiglu_mlp", geometry(TP8), tokens, torch.bfloat16)


@pytest.mark.parametrize("name", ["rms_norm", "rotary", "route_topk", "quantize", "dynamic_quantize", "quant_linear"])
def test_what_is_one_operator_already_is_not_worth_another(name: str) -> None:
    """As torch_npu spells it; its operators are held to take what those of the pattern function do, each."""
    site = site_of(name, layouts(name, geometry(TP8), 8, torch.bfloat16))
    (row,) = [row for row in _table()[name][TP8] if row.tokens == 8]
    assert gain(site).separate == row.apart + row.kernels * site.launch_us
    assert gain(replace(site, operators=1)).saved < 0 < gain(site).saved


def test_tokens_between_the_rows_take_the_next_and_beyond_them_several_rounds() -> None:
    assert gain(site_of("swiglu_mlp", values(5))).fused == gain(site_of("swiglu_mlp", values(8))).fused
    one, two = (gain(site_of("swiglu_mlp", values(tokens), 0.0)).fused for tokens in (128, 256))
    assert two == 2 * one


def test_sizes_of_no_model_are_judged_by_launches() -> None:
    site = site_of("swiglu_mlp", layouts("swiglu_mlp", geometry("tiny"), 8, torch.bfloat16))
    assert "launches alone" in gain(site).basis


def mlp(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    return swiglu_mlp.function(x, w_gate, w_up, w_down)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_site_that_does_not_gain_is_not_fused_and_the_report_has_both_numbers(dynamic: bool) -> None:
    """By time on the cores alone the fused MLP loses to its parts at 8 tokens."""
    given = arguments("swiglu_mlp", geometry(TP8), 8, torch.bfloat16)
    if dynamic:
        torch._dynamo.mark_dynamic(given["x"], 0)
    fused = gain(site_of("swiglu_mlp", values(8), 0.0))
    assert fused.saved < 0
    for launch_us, status in ((0.0, "matched"), (20.0, "chosen")):
        torch._dynamo.reset()
        report = Report()
        options = {"engine": "eager", "targets": ("pypto",), "launch_us": launch_us, "report": report}
        with torch.no_grad():
            torch.compile(mlp, backend="glmfuse", options=options)(**given)
        (row,) = [row for row in report.rows() if row.pattern == "swiglu_mlp"]
        assert row.status == status, row
        if status == "matched":
            assert row.code == "loss"
            assert "us fused" in row.found
            assert "us apart" in row.found
            assert row.found in str(report)
