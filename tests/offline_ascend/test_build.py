"""Building and loading the stand-ins: what is built, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.offline_ascend.standin import StandInError, build, load, symbols
from tests.offline_ascend.standin.libraries import ALL


def test_the_libraries_have_what_the_wheel_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "cann"
    assert "9 libraries" in build.build(folder)
    wanted = json.loads((folder / build.MANIFEST).read_text())
    assert "libascendcl.so" in wanted["libraries"]
    assert set(wanted["functions"]) <= symbols.read(folder / ALL).defined
    assert all(symbols.read(folder / name).needed == {ALL, "libc.so.6"} for name in wanted["libraries"])


def test_only_a_folder_of_stand_ins_is_built_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StandInError, match="holds something else"):
        build.build(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(StandInError, match="no_such_package is not installed"):
        build.installed("no_such_package")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StandInError, match="gcc is not installed"):
        symbols.tool("gcc")


def test_data_that_a_library_expects_cannot_be_made_up(tmp_path: Path) -> None:
    source = "extern int _ZTVSomething; int here(void) { return _ZTVSomething; }"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", tmp_path / "libx.so", "-x", "c", "-"], input=source, text=True, check=True
    )
    with pytest.raises(StandInError, match="expects data"):
        symbols.missing(tmp_path, Path(torch.__file__).parent)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CANN_STAND_INS": ""}, "CANN_STAND_INS is not set"),
        ({"CANN_STAND_INS": "/nowhere"}, "no stand-ins in /nowhere"),
        ({"TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}, "set TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
    ],
)
def test_what_is_missing_to_load_is_said(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StandInError, match=message):
        load.folder()


def test_stand_ins_of_another_torch_npu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / build.MANIFEST).write_text('{"torch_npu": "2.9.0"}')
    monkeypatch.setenv("CANN_STAND_INS", str(tmp_path))
    with pytest.raises(StandInError, match=r"for torch_npu 2\.9\.0, .* is installed; build them again"):
        load.folder()


def test_a_kernel_that_has_no_stand_in_is_refused() -> None:
    with pytest.raises(RuntimeError, match="FastGelu, error code is 500001"):
        torch.ops.npu.npu_fast_gelu(torch.randn(4).npu())
    with pytest.raises(RuntimeError, match="aclnnMoeGatingTopKSoftmax .* libopapi.so not found"):
        torch.ops.npu.npu_moe_gating_top_k_softmax(torch.randn(2, 4).npu(), None, 2)
