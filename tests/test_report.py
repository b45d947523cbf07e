"""The report in each form, and where it goes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import networkx as nx
import pytest
import torch

import glmfuse
from glmfuse import Report
from glmfuse.report.report import Row
from tests.support.glm import decode_static, prefill, tiny


def compiled_with(report: object) -> None:
    model = tiny(torch.bfloat16)
    torch.compile(model, backend="glmfuse", options={"engine": "eager", "report": report})(**prefill(model))


def test_text_counts_and_names_the_target() -> None:
    report = Report()
    compiled_with(report)
    lines = str(report).splitlines()
    assert [line for line in lines if line.startswith("graph 0: ")]
    (row,) = [line for line in lines if line.strip().startswith("norm_qkv_rope")]
    assert row.split() == ["norm_qkv_rope", "4", "4", "0", "0", "reference"]
    (row,) = [line for line in lines if line.strip().startswith("rms_norm")]
    assert row.split() == ["rms_norm", "17", "0", "17", "0"]


def test_json_keeps_its_schema() -> None:
    report = Report()
    compiled_with(report)
    data = json.loads(json.dumps(report.to_json()))
    assert data["schema_version"] == 1
    assert set(data) == {"schema_version", "notes", "graphs"}
    (graph,) = data["graphs"]
    assert set(graph) == {
        "index", "engine", "targets", "notes", "seconds", "counts", "verified", "bodies",
    }  # fmt: skip
    assert graph["counts"]["rms_norm"] == {"matched": 17, "chosen": 0, "absorbed": 17}
    (body,) = graph["bodies"]
    assert set(body) == {"name", "calls", "nodes_captured", "nodes_fused", "rows", "cost", "left_over"}
    assert set(body["cost"]) == {"bytes", "held", "flops"}
    assert set(body["left_over"][0]) == {"node", "op", "source", "module", "cost"}
    assert set(body["rows"][0]) == {field.name for field in fields(Row)} == {
        "pattern", "status", "stage", "node", "source", "code", "expected", "found", "target", "gain",
        "variant", "scalars", "replaced", "matched_terms", "total_terms",
    }  # fmt: skip
    (first, *_) = [row for row in body["rows"] if row["pattern"] == "norm_qkv_rope" and row["status"] == "chosen"]
    assert first["scalars"] == {"eps": 1e-5, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "interleaved": False}
    assert first["replaced"] > 40
    assert "modeling_glm4_moe.py:" in first["source"]


def test_a_folder_gets_every_form_and_keeps_what_lies_there(tmp_path: Path) -> None:
    for _ in range(2):
        compiled_with(str(tmp_path))
        torch._dynamo.reset()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(
        f"graph-{number}.{form}"
        for number in (0, 1)
        for form in ("txt", "json", "graphml", "captured.txt", "fused.txt")
    )
    graph = nx.read_graphml(tmp_path / "graph-0.graphml")
    patterns = {data["pattern"] for _, data in graph.nodes(data=True)}
    assert {"norm_qkv_rope", "moe", "swiglu_mlp", "add_rms_norm", ""} <= patterns
    assert json.loads((tmp_path / "graph-0.json").read_text())["counts"]["gate_topk"]["absorbed"] == 3
    assert "torch.ops.glmfuse.moe" in (tmp_path / "graph-0.fused.txt").read_text()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="option 'report': cannot write to folder"):
        compiled_with(str(tmp_path / "file"))


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    compiled_with("-")
    assert "norm_qkv_rope" in capsys.readouterr().err


def test_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLMFUSE_REPORT", str(tmp_path))
    model = tiny(torch.bfloat16)
    torch.compile(model, backend="glmfuse", options={"engine": "eager"})(**prefill(model))
    assert (tmp_path / "graph-0.txt").exists()


def test_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="glmfuse"):
        compiled_with(None)
    assert any("norm_qkv_rope" in record.getMessage() for record in caplog.records if record.name == "glmfuse")


def test_torch_logs_names_the_logger() -> None:
    script = (
        "import torch\n"
        "f = torch.compile(lambda x: torch.exp(x), backend='glmfuse', options={'engine': 'eager'})\n"
        "f(torch.randn(2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**_environment(), "TORCH_LOGS": "glmfuse"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "graph 0: 3 nodes captured" in done.stderr


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def test_explain_reports_every_graph_and_leaves_the_model_alone() -> None:
    model = tiny(torch.bfloat16)
    arguments = decode_static(model)
    report = glmfuse.explain(model, **arguments)
    assert report.count("chosen")["moe"] == 3
    assert len(report.graphs) == 1
    again = glmfuse.explain(torch.compile(model), **arguments)
    assert again.count() == report.count()


def test_explain_many_times_never_runs_out() -> None:
    layer = torch.nn.Linear(4, 4).eval()
    for _ in range(20):
        assert glmfuse.explain(layer, torch.randn(2, 4)).count()["linear"] == 1


def test_a_stage_has_its_time() -> None:
    report = Report()
    compiled_with(report)
    stages = {"canonicalize", "match", "select", "plan", "left over", "rewrite", "engine"}
    assert set(report.graphs[0].seconds) == stages
