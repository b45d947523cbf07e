"""What is said of torch_npu where it is absent, broken or wrongly paired; its states are made up here.

The true wheel, with stand-ins for CANN and without, is asked in `tests/offline_ascend`.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from glmfuse.ascend import installed, libraries
from glmfuse.lowering.pypto import target as pypto

Versions = Callable[..., None]


@pytest.fixture(autouse=True)
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process has loaded: each test makes its own state."""
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Installed packages, by the names that pip would show."""

    def set_to(**given: str) -> None:
        def version(package: str) -> str:
            if package not in given:
                raise metadata.PackageNotFoundError(package)
            return given[package]

        monkeypatch.setattr(metadata, "version", version)

    return set_to


def load(monkeypatch: pytest.MonkeyPatch, socs: Sequence[str], error: Exception | None = None) -> None:
    """torch_npu as if it were imported and these were its devices."""

    def device_count() -> int:
        if error is not None:
            raise error
        return len(socs)

    npu = SimpleNamespace(device_count=device_count, get_device_name=socs.__getitem__)
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", npu, raising=False)


def link(folder: Path, name: str, needs: Sequence[str] = ()) -> Path:
    """A shared library that needs others, made by the machine's own linker."""
    source = folder / "empty.cpp"
    source.write_text("")
    out = folder / f"lib{name}.so"
    wants = [f"-l{other}" for other in needs]
    command = ["c++", "-shared", "-fPIC", str(source), "-o", str(out), f"-Wl,-soname,lib{name}.so", f"-L{folder}"]
    subprocess.run([*command, "-Wl,--no-as-needed", *wants], check=True, capture_output=True)
    return out


def test_absent(versions: Versions) -> None:
    versions(torch="2.13.0+cpu")
    assert installed.torch_npu_version() is None
    assert not installed.is_loaded()
    assert installed.device_count() == 0
    assert installed.soc_name() is None
    reason = str(installed.unavailable())
    assert "torch_npu is not installed" in reason
    assert "then torch_npu 2.13" in reason


@pytest.mark.parametrize(("build", "torch_build"), [("2.12.0.post3", "2.13.0+cpu"), ("2.13.0", "2.14.0")])
def test_wrong_pairing(versions: Versions, build: str, torch_build: str) -> None:
    versions(torch=torch_build, torch_npu=build)
    reason = str(installed.unavailable())
    assert f"torch_npu {build} needs torch {build[:4]}, and torch {torch_build} is installed" in reason
    assert f"install torch_npu {torch_build[:4]}, or torch {build[:4]}" in reason


def test_a_post_release_pairs_with_its_torch(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(torch="2.13.0+cpu", torch_npu="2.13.0.post2")
    assert installed.mispaired() is None
    monkeypatch.setattr(installed, "_library", lambda: None)
    assert "installed and not loaded; import torch_npu" in str(installed.unavailable())


def test_without_cann_the_missing_library_is_named(
    versions: Versions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions(torch="2.13.0", torch_npu="2.13.0")
    for name in ("glmfuse_absent_a", "glmfuse_absent_b", "c10"):
        link(tmp_path, name)
    link(tmp_path, "tensorpipe", ["glmfuse_absent_b"])
    library = link(tmp_path, "torch_npu", ["glmfuse_absent_a", "tensorpipe", "c10"])
    for name in ("glmfuse_absent_a", "glmfuse_absent_b", "c10"):
        (tmp_path / f"lib{name}.so").unlink()
    monkeypatch.setattr(installed, "_library", lambda: library)
    assert libraries.missing(library) == ("libglmfuse_absent_a.so", "libglmfuse_absent_b.so")
    reason = str(installed.unavailable())
    assert "CANN's libraries are not found (libglmfuse_absent_a.so and 1 more)" in reason
    assert "set_env.sh" in reason
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in reason


def test_a_library_that_is_loaded_already_is_not_missing(tmp_path: Path) -> None:
    """As the stand-ins are, which no loader's path names."""
    given = link(tmp_path, "glmfuse_given")
    library = link(tmp_path, "torch_npu", ["glmfuse_given"])
    handle = ctypes.CDLL(str(given))
    moved = tmp_path / "wheel"
    moved.mkdir()
    assert libraries.missing(library.rename(moved / library.name)) == ()
    assert handle is not None


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not there")
def test_what_a_library_needs_is_what_readelf_says() -> None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    printed = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True).stdout
    expected = [line.split("[")[1].rstrip("]") for line in printed.splitlines() if "(NEEDED)" in line]
    assert "libtorch_cpu.so" in expected
    assert list(libraries.needed(library)) == expected


def test_what_is_no_library_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no ELF file")
    assert libraries.needed(tmp_path / "text.so") == ()
    assert libraries.needed(tmp_path / "absent.so") == ()


def test_loaded_without_a_device(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(torch="2.13.0", torch_npu="2.13.0")
    load(monkeypatch, [])
    assert "sees no NPU" in str(installed.unavailable())
    assert "ASCEND_RT_VISIBLE_DEVICES" in str(installed.unavailable())
    assert "no NPU" in str(pypto.not_by_default())


def test_a_driver_that_fails_is_no_device(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(torch="2.13.0", torch_npu="2.13.0")
    load(monkeypatch, ["Ascend910B1"], RuntimeError("drvGetDevNum failed"))
    assert installed.device_count() == 0
    assert "sees no NPU" in str(installed.unavailable())


def test_several_types_of_npu_are_refused_by_name(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(torch="2.13.0", torch_npu="2.13.0")
    load(monkeypatch, ["Ascend910B1", "Ascend910_9362", "Ascend910B1"])
    reason = str(installed.unavailable())
    assert "of 2 types (Ascend910B1, Ascend910_9362)" in reason
    assert installed.soc_name() is None


def test_a_device_is_used(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(torch="2.13.0", torch_npu="2.13.0")
    load(monkeypatch, ["Ascend910B3", "Ascend910B3"])
    assert installed.unavailable() is None
    assert installed.device_count() == 2
    assert installed.soc_name() == "Ascend910B3"
    assert pypto.not_by_default() is None


def test_an_import_that_failed_half_way_is_not_loaded(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes `torch_npu` out of sys.modules again, and leaves its submodules."""
    versions(torch="2.13.0", torch_npu="2.13.0")
    monkeypatch.setattr(installed, "_library", lambda: None)
    monkeypatch.setitem(sys.modules, "torch_npu._init", ModuleType("torch_npu._init"))
    assert not installed.is_loaded()
    assert "not loaded" in str(installed.unavailable())
