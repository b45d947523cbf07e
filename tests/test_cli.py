"""The command line as a newcomer sees it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glmfuse.cli.main import main

CONFIG = {
    "model_type": "glm4_moe", "hidden_size": 5120, "num_hidden_layers": 92, "first_k_dense_replace": 3,
    "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 160,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 1536, "intermediate_size": 12288,
    "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 131072,
    "vocab_size": 151552, "rms_norm_eps": 1e-5, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}  # fmt: skip
"""GLM-4.5 at its real size."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmfuse.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_demo_shows_the_job_and_nothing_else() -> None:
    done = run("demo", "--engine", "eager")
    assert done.returncode == 0
    first = done.stdout.splitlines()[0]
    said = re.fullmatch(
        r"tiny GLM-4.5, torch.float32, one decode step: (equal|relative L2 error (\S+)) against eager", first
    )
    assert said
    assert float(said[2] or 0) < 1e-5
    for text in ("norm_qkv_rope", "gate_topk", "moe", "swiglu_mlp", "first call", "seconds: canonicalize"):
        assert text in done.stdout
    for noise in ("Warning", "warn", "Traceback", "lru_cache"):
        assert noise not in done.stdout + done.stderr


@pytest.mark.slow
def test_demo_by_default() -> None:
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert "engine inductor" in done.stdout


def test_explain_a_config_without_its_weights(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--config", str(config), "--layers", "4", "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    chosen = {name: counts["chosen"] for name, counts in graph["counts"].items()}
    expected = {"norm_qkv_rope": 4, "linear_add_rms_norm": 4, "moe": 1, "swiglu_mlp": 3, "add_rms_norm": 1}
    assert {name: chosen[name] for name in expected} == expected
    assert graph["counts"]["gate_topk"]["absorbed"] == 1


def test_explain_a_prefill(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--config", str(config), "--layers", "4", "--phase", "prefill", "--tokens", "16"]) == 0
    assert "norm_qkv_rope" in capsys.readouterr().out


@pytest.mark.slow
def test_all_layers_of_glm_45_at_full_size_in_little_memory(config: Path) -> None:
    script = (
        "import sys, resource\n"
        "from glmfuse.cli.main import main\n"
        f"status = main(['explain', '--config', {str(config)!r}, '--json'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=True)
    (graph,) = json.loads(done.stdout)["graphs"]
    chosen = {name: counts["chosen"] for name, counts in graph["counts"].items()}
    expected = {"norm_qkv_rope": 92, "attention": 92, "cache_update": 2 * 92, "linear_add_rms_norm": 92}
    expected |= {"moe": 89, "swiglu_mlp": 3, "add_rms_norm": 1}
    assert {name: chosen[name] for name in expected} == expected
    inside = {"gate_topk": 89, "grouped_mlp": 89, "swiglu_mlp": 89}
    assert {name: graph["counts"][name]["absorbed"] for name in inside} == inside
    peak_kib = int(done.stderr.split()[-1])
    assert peak_kib < 3 * 2**20, f"{peak_kib / 2**20:.2f} GiB"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "no 'model_type'"),
        ('{"hidden_size": 3}', "no 'model_type'"),
        ('{"model_type": "glm99"}', "has no model_type 'glm99'"),
    ],
)
def test_a_bad_config_is_one_line(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert main(["explain", "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    said = [line for line in error.strip().splitlines() if "going on without torch_npu" not in line]
    assert len(said) == 1


def test_an_unknown_engine_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--engine", "cuda"]) == 1
    assert "unknown engine: 'cuda'. Valid: eager, inductor" in capsys.readouterr().err


def test_zero_layers_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "--config", str(config), "--layers", "0"])
    assert "not a number of 1 or more" in capsys.readouterr().err
