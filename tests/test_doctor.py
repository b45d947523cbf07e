"""`glmfuse doctor`, and what it finds out, in environments that are made up here.

The package torch_npu of these tests is an empty one: torch's own autoload imports it, and it fails as the real one
does. The real one is asked in `tests/offline_ascend`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from glmfuse.ascend import installed
from glmfuse.cli.main import main
from tests.test_ascend_installed import link

SETTINGS = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_HOME_PATH")
ROOT = Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of glmfuse in a process of its own, with a folder of packages before all others."""
    folders = [str(path)] if path is not None else []
    given = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    given["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "glmfuse.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**given, **environment})


@pytest.fixture
def torch_npu(tmp_path: Path) -> Callable[..., Path]:
    """A package of that name: its build, what its import does, and whether its libraries lack another."""

    def make(build: str, code: str, *, lacks: bool) -> Path:
        package, wheel = tmp_path / "torch_npu", tmp_path / f"torch_npu-{build}.dist-info"
        (package / "lib").mkdir(parents=True)
        wheel.mkdir()
        (package / "__init__.py").write_text(f"{code}\ndef _autoload(): pass\n")
        (wheel / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {build}\n")
        (wheel / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
        absent = link(package / "lib", "hccl")
        link(package / "lib", "torch_npu", ["hccl"] if lacks else [])
        absent.unlink()
        return tmp_path

    return make


@cache
def plain() -> subprocess.CompletedProcess[str]:
    """What it says of this machine."""
    return run("doctor")


ABSENT = pytest.mark.skipif(installed.torch_npu_version() is not None, reason="of a machine without torch_npu")


@ABSENT
def test_a_cpu_is_usable() -> None:
    done = plain()
    assert done.returncode == 0, done.stderr
    assert "  engine        inductor\n" in done.stdout
    assert done.stdout.endswith("usable: yes\n")


@ABSENT
def test_the_readme_has_what_it_prints() -> None:
    shown = (ROOT / "README.md").read_text().partition("$ glmfuse doctor\n")[2].partition("```")[0]
    printed = plain().stdout
    assert re.sub(r"\d+\.\d+\.\d+\S*", "VERSION", printed) == re.sub(r"\d+\.\d+\.\d+\S*", "VERSION", shown)


@ABSENT
def test_the_data_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    health = json.loads(capsys.readouterr().out)
    assert health["usable"] is True
    assert health["broken"] is None
    found = {part["name"]: part["found"] for part in health["parts"]}
    assert found["Python"] == sys.version.split()[0]
    assert set(found) == {"Python", "torch", "torch_npu", "CANN", "NPU", "pypto", "transformers", "C++ compiler"}
    assert [use["device"] for use in health["uses"]] == ["cpu"]


def test_without_a_compiler_nothing_compiles() -> None:
    done = run("doctor", CXX="no-such-compiler", PATH="")
    assert done.returncode == 1
    assert "no C++ compiler is there; install g++ or clang++" in done.stdout
    assert "  engine        eager" in done.stdout
    assert "usable: no" in done.stdout


def test_torch_npu_without_cann(torch_npu: Callable[..., Path]) -> None:
    """Torch cannot be imported, and the commands that are glmfuse's own go on without torch_npu."""
    path = torch_npu("2.13.0", "raise ImportError('libhccl.so: cannot open shared object file')", lacks=True)
    plain = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": str(path), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert "Failed to load the backend extension: torch_npu" in plain.stderr
    done = run("doctor", path=path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "CANN's libraries are not found (libhccl.so)" in done.stdout
    assert done.stdout.endswith("usable: no; `import torch` fails here\n")
    listed = run("kernels", "list", path=path)
    assert listed.returncode == 0, listed.stderr
    assert "going on without torch_npu" in listed.stderr
    assert "swiglu_mlp" in listed.stdout


def test_torch_npu_without_cann_that_torch_leaves_alone(torch_npu: Callable[..., Path]) -> None:
    path = torch_npu("2.13.0", "raise ImportError('libhccl.so: cannot open shared object file')", lacks=True)
    done = run("doctor", path=path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CANN's libraries are not found (libhccl.so)" in done.stdout
    assert "  engine        inductor" in done.stdout


def test_a_torch_npu_for_another_torch(torch_npu: Callable[..., Path]) -> None:
    path = torch_npu("2.12.0.post3", "raise ImportError('undefined symbol: _ZN5torch3jit')", lacks=False)
    done = run("doctor", path=path)
    assert done.returncode == 1
    assert "torch_npu 2.12.0.post3 needs torch 2.12" in done.stdout


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('drvGetDevNum failed, ret 87')", "RuntimeError: drvGetDevNum failed, ret 87"),
        ("import os; os.abort()", "the process ends with status -6"),
    ],
)
def test_what_only_an_import_shows_is_found_out_apart(torch_npu: Callable[..., Path], code: str, said: str) -> None:
    done = run("doctor", path=torch_npu("2.13.0", code, lacks=False))
    assert done.returncode == 1
    assert said in done.stdout
    assert "  engine        inductor" in done.stdout


def test_cann_is_found_and_its_version_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "aarch64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.3.RC1\ninnerversion=V100R001C23\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    main(["doctor"])
    assert "  CANN          8.3.RC1\n" in capsys.readouterr().out
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "gone"))
    main(["doctor"])
    assert f"ASCEND_HOME_PATH names '{tmp_path / 'gone'}', which is no folder" in capsys.readouterr().out


def test_torch_npu_with_a_cann_that_is_gone(torch_npu: Callable[..., Path]) -> None:
    path = torch_npu("2.13.0", "raise Exception('ASCEND_HOME_PATH : /gone does not exist')", lacks=False)
    done = run("doctor", path=path, ASCEND_HOME_PATH="/gone")
    assert done.returncode == 1
    assert "torch_npu 2.13.0 cannot be imported: ASCEND_HOME_PATH names '/gone', which is no folder" in done.stdout
