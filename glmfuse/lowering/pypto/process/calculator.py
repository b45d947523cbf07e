"""The interpreter's calculator: a small C++ library over torch, built once and kept for all processes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import pypto
import torch
from pypto._utils import BuildOnlineManager

_LIBRARY = "libtile_fwk_calculator.so"


def load(cache_folder: Path) -> None:
    """Load the library into this process, building it first where the cache has none for these versions."""
    builder = BuildOnlineManager()
    if builder.calculator_loaded:
        return
    library = cache_folder / _key() / _LIBRARY
    if not library.exists():
        _build(builder, library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    builder.calculator_loaded = True


def _key() -> str:
    """One library for each torch, Python, machine and version of pypto's calculator sources."""
    digest = hashlib.sha256(
        f"{torch.__version__}|{torch.__file__}|{platform.machine()}|{sys.version_info[:2]}".encode()
    )
    for path in sorted((Path(pypto.__file__).parent / "lib" / "calculator").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(builder: BuildOnlineManager, library: Path) -> None:
    for tool, package in (("cmake", "cmake"), ("c++", "g++")):
        if shutil.which(tool) is None:
            raise RuntimeError(f"PyPTO's interpreter needs {tool}, which is not on PATH; install {package}")
    environment = os.environ
    try:
        settings, cmake = builder._TorchContext(), builder._CMakeContext()
    finally:
        os.environ = environment  # noqa: B003  pypto 0.2.0 rebinds it to a dict that children do not see
    with tempfile.TemporaryDirectory() as folder:
        context = cmake.CompileContext(src_dir=Path(builder.pkg_lib_dir, "calculator"), tmp_dir=Path(folder))
        context.cfg_cmd_ext = (
            f"-DPY3_MOD_TORCH_VERSION={settings.torch_version} -DPY3_MOD_TORCH_ROOT_PATH={settings.torch_root_dir}"
            f" -DPY3_MOD_TORCH_C_GLIBCXX_USE_CXX11_ABI={settings.torch_c_use_cxx11_abi}"
        )
        built = Path(cmake.compile(ctx=context), "lib", _LIBRARY)
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}.partial")
        shutil.copy(built, partial)
        os.replace(partial, library)  # whole or not at all, however many processes build at once
