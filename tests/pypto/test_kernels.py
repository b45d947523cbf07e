"""PyPTO kernels against their pattern functions: all passes compiled, numerics by PyPTO's interpreter on a CPU.

Nothing here ran on an NPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glmfuse import Report, Target
from glmfuse.capture import as_tuple
from glmfuse.cli.main import main
from glmfuse.lowering.pypto import kernels, target
from glmfuse.lowering.pypto.checking import check, distance
from glmfuse.lowering.pypto.chip import ASCEND_910B, Chip
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel, interpret, request_of
from glmfuse.lowering.pypto.process import KernelRef, Mode, Request, run
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.timing import Simulator
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from glmfuse.patterns import swiglu
from tests.pypto.names import TAKEN
from tests.support.glm import decode_static, fresh, prefill, tiny
from tests.support.graphs import same_bits

pytestmark = [
    pytest.mark.xdist_group("pypto-kernels"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

TOKENS = (1, 2, 5, 8, 31, 32, 33)
REAL = (("glm-4.5/tp8", 1), ("glm-4.5/tp8", 8), ("glm-4.5/tp8", 33), ("glm-4.5-air/tp8", 8))
"""Few of the points that benchmarks/pypto_check.py has, of every shape of the family and up to 512 tokens."""


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", TAKEN)
def test_a_kernel_is_its_pattern_at_tiny_sizes(name: str, tokens: int) -> None:
    found = check(name, "tiny", tokens, seed=tokens)
    assert found.passed, found


@pytest.mark.parametrize("tokens", [5, 33])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_other_dtypes_agree_or_are_refused(name: str, dtype: torch.dtype, tokens: int) -> None:
    found = check(name, "tiny", tokens, dtype)
    reasons = ("torch.float32 is none of", "x must be bf16 or fp16")
    assert found.passed or any(reason in found.refused for reason in reasons), found


ROUTERS = {"gate_topk": "w", "router_mlp_w8a8_dynamic": "w_router", "router_quant_mlp_w8a8_dynamic": "w_router"}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_in_the_models_dtype_at_real_size(name: str) -> None:
    """As transformers before 5.24 holds it; the family's are in fp32."""
    values = arguments(name, geometry("glm-4.5/tp8"), 33, torch.bfloat16)
    values[ROUTERS[name]] = values[ROUTERS[name]].bfloat16()
    found = interpret(KERNELS[name].launch(ASCEND_910B, **values), Mode.COMPILE)
    assert distance(name, found, values) <= KERNEL_RELATIVE_L2[torch.bfloat16]


@pytest.mark.parametrize("hidden", [2304, 2880])
def test_a_router_whose_slices_are_no_power_of_two(hidden: int) -> None:
    at = replace(geometry("glm-4.5/tp8"), hidden=hidden)
    values = arguments("gate_topk", at, 2, torch.bfloat16)
    found = interpret(KERNELS["gate_topk"].launch(ASCEND_910B, **values), Mode.COMPILE)
    assert distance("gate_topk", found, values) <= KERNEL_RELATIVE_L2[torch.bfloat16]


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("x", [torch.bfloat16, torch.float32], ids=str)
def test_a_router_with_an_fp32_weight_at_real_size(x: torch.dtype, tokens: int) -> None:
    values = arguments("gate_topk", geometry("glm-4.5/tp8"), tokens, torch.float32)
    values["x"] = values["x"].to(x)
    found = interpret(KERNELS["gate_topk"].launch(ASCEND_910B, **values), Mode.COMPILE)
    assert distance("gate_topk", found, values) <= KERNEL_RELATIVE_L2[torch.float32]


@pytest.mark.parametrize(("shape", "tokens"), REAL)
@pytest.mark.parametrize("name", TAKEN)
def test_a_kernel_is_its_pattern_at_real_sizes(name: str, shape: str, tokens: int) -> None:
    found = check(name, shape, tokens, seed=tokens)
    assert found.passed, found


# The attention kernels have a round for each sequence, not for a block of them.
@pytest.mark.parametrize(
    ("name", "tokens"), [(name, n) for name in TAKEN for n in (1, 5, 33) if n < 33 or "attention" not in name]
)
def test_every_pass_keeps_the_numerics(name: str, tokens: int) -> None:
    found = check(name, "tiny", tokens, passes=True)
    assert found.passed, found


@pytest.mark.parametrize("name", ["gate_topk", "norm_qkv_rope"])
def test_every_pass_keeps_the_numerics_of_sliced_products(name: str) -> None:
    wide = replace(geometry("tiny"), hidden=2048, experts=16)
    launch = KERNELS[name].launch(ASCEND_910B, **arguments(name, wide, 5, torch.bfloat16))
    assert re.search("slices=(?!1\\b)", str(launch.kernel))
    found = check(name, wide, 5, passes=True)
    assert found.passed, found


@pytest.mark.parametrize("name", ["rms_norm", "swiglu_mlp"])
def test_the_cost_model_is_deterministic(name: str) -> None:
    first, second = (Simulator().time(name, "tiny", 8).simulation for _ in range(2))
    assert first == second
    assert first.window > 0


@pytest.mark.parametrize("phase", [prefill, decode_static])
def test_a_whole_tiny_glm_runs_through_the_kernels(phase: Any) -> None:
    model = tiny(torch.bfloat16)
    report = Report()
    options = {"engine": "eager", "targets": ("pypto", "reference"), "verify": True, "report": report}
    given = phase(model)
    found = torch.compile(model, backend="glmfuse", options=options)(**fresh(given)).logits
    by_pypto = {row.pattern for row in report.rows() if row.target == "pypto"}
    one_query = {"attention"} if phase is decode_static else set()  # over keys repeated to one for each head
    assert by_pypto == {"norm_qkv_rope", "gate_topk", "swiglu_mlp", "add_rms_norm", "swiglu"} | one_query
    assert not report.count("chosen")["linear_add_rms_norm"], "a kernel comes before what is only inlined"
    torch._dynamo.reset()
    options = {"engine": "eager", "targets": ("reference",)}
    expected = torch.compile(model, backend="glmfuse", options=options)(**fresh(given)).logits
    assert (found - expected).float().norm() / expected.float().norm() < 0.02


@pytest.mark.parametrize("name", TAKEN)
def test_empty_and_strided_inputs(name: str) -> None:
    values = arguments(name, geometry("tiny"), 4, torch.bfloat16)
    spread = {key: _strided(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
    dense, strided = (interpret(KERNELS[name].launch(ASCEND_910B, **given)) for given in (values, spread))
    assert same_bits(as_tuple(dense), as_tuple(strided))
    if name in ("rms_norm", "swiglu_mlp"):
        empty = interpret(KERNELS[name].launch(ASCEND_910B, **{**values, "x": values["x"][:0]}))
        assert all(tensor.shape[0] == 0 for tensor in as_tuple(empty))


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def test_a_kernel_that_fails_does_not_disturb_the_next_call() -> None:
    broken = KernelRef.of("tests.pypto.broken:build_too_wide", width=65536)
    x = torch.randn(1, 65536)
    outcome = run(Request(broken, Mode.COMPILE, (x,), (((1, 65536), torch.float32),)))
    assert outcome.error is not None
    assert check("rms_norm", "tiny", 5).passed
    outcome = run(Request(KernelRef.of("tests.pypto.broken:build_raising"), Mode.COMPILE, (x,), ()))
    assert "no such kernel" in (outcome.error or "")
    assert check("rms_norm", "tiny", 5).passed


def test_a_run_that_takes_too_long_is_ended() -> None:
    launch = KERNELS["rms_norm"].launch(ASCEND_910B, **arguments("rms_norm", geometry("tiny"), 5, torch.bfloat16))
    assert "no answer within" in (run(request_of(launch, Mode.INTERPRET), timeout=0.001).error or "")
    assert check("rms_norm", "tiny", 5).passed


def test_threads_take_turns() -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda tokens=tokens: found.append(check("rms_norm", "tiny", tokens).passed))
        for tokens in (1, 2, 5, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_many_calls_leak_neither_files_nor_memory() -> None:
    launch = KERNELS["rms_norm"].launch(ASCEND_910B, **arguments("rms_norm", geometry("tiny"), 5, torch.bfloat16))
    request = request_of(launch, Mode.INTERPRET)
    run(request)
    files, memory = _open_files(), _worker_memory()
    for _ in range(200):
        assert run(request).error is None
    assert _open_files() <= files + 1
    assert _worker_memory() - memory < 100 * 2**20


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) + sum(len(list(folder.rglob("*"))) for folder in _folders())


def _folders() -> list[Path]:
    from glmfuse.lowering.pypto.process.worker import _WORKERS

    return [Path(worker._folder) for worker in _WORKERS.values() if worker._folder]


def _worker_memory() -> int:
    from glmfuse.lowering.pypto.process.worker import _WORKERS

    process = _WORKERS[os.getpid()]._process
    assert process is not None
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_shape_over_the_limits_is_refused_with_its_number() -> None:
    report = Report()

    def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        from glmfuse.patterns import rms_norm

        return rms_norm.function(x, w, 1e-5)

    options = {"engine": "eager", "targets": ("pypto",), "report": report}
    torch.compile(norm, backend="glmfuse", options=options)(torch.randn(2, 16384), torch.randn(16384))
    assert "262144 bytes for 4 rows of 16384 exceed the 196608 of UB" in " ".join(row.found for row in report.rows())


def test_by_default_the_interpreter_is_left_alone() -> None:
    report = Report()
    torch.compile(torch.nn.SiLU(), backend="glmfuse", options={"engine": "eager", "report": report})(torch.randn(2, 4))
    assert any("there is no NPU" in note for note in report.notes)


def test_without_pypto_the_target_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"install it with: pip install 'glmfuse\[pypto\]'"):
        torch.compile(torch.nn.SiLU(), backend="glmfuse", options={"targets": ("pypto",)})(torch.randn(2, 4))
    monkeypatch.setattr(target.sys, "version_info", (3, 13, 0))
    assert "no wheel for Python 3.13" in (target.unavailable() or "")


def test_without_a_compiler_the_target_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.shutil, "which", lambda tool: None)
    assert target.unavailable() == "its interpreter needs cmake and g++; install them"


def test_pypto_stays_in_its_worker() -> None:
    script = (
        "import sys, torch\n"
        "from glmfuse.lowering.pypto.checking import check\n"
        "assert check('rms_norm', 'tiny', 2).passed\n"
        "assert 'pypto' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["kernels", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KERNELS)
    assert main(["kernels", "check", "rms_norm", "--shape", "tiny", "--tokens", "1,3"]) == 0
    assert capsys.readouterr().out.count("rms_norm") == 2
    trace = tmp_path / "trace.json"
    assert main(["kernels", "time", "rms_norm", "--shape", "tiny", "--tokens", "2", "--trace", str(trace)]) == 0
    assert "not measured on a chip" in capsys.readouterr().out
    assert '"traceEvents"' in trace.read_text()
    assert main(["kernels", "check", "--shape", "glm-9"]) == 1
    assert "unknown shape: 'glm-9'. Valid:" in capsys.readouterr().err
    assert main(["kernels", "check", "none"]) == 1
    assert "unknown kernel: 'none'. Valid:" in capsys.readouterr().err


def test_a_kernel_of_ones_own_in_any_file_is_picked_up(tmp_path: Path) -> None:
    source = Path(kernels.__file__).with_name("swiglu.py").read_text()
    (tmp_path / "mine.py").write_text(source)
    built_in = KERNELS["swiglu"]

    def launch(chip: Chip, **values: Any) -> Launch:
        made = built_in.launch(chip, **values)
        return replace(made, kernel=replace(made.kernel, builder=f"{tmp_path}/mine.py:build"))

    mine = Target("mine", {"swiglu": target.kernel_of(PyptoKernel(built_in.limits, launch))})
    gate, up = torch.randn(3, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    report = Report()
    options = {"engine": "eager", "targets": (mine,), "verify": True, "report": report}
    found = torch.compile(swiglu.function, backend="glmfuse", options=options)(gate, up)
    assert [row.target for row in report.rows() if row.status == "chosen"] == ["mine"]
    assert torch.equal(found, swiglu.function(gate, up))
