"""Bring torch_npu up on the stand-in libraries."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
from functools import cache
from pathlib import Path

from tests.offline_ascend.standin import StandInError
from tests.offline_ascend.standin.build import MANIFEST
from tests.offline_ascend.standin.libraries import ALL

FOLDER = "CANN_STAND_INS"  # the environment variable that names the built folder
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def folder() -> Path:
    """Where the libraries are.

    Raises:
        StandInError: they are not built, or for another torch_npu, or torch would import torch_npu before them.
    """
    named = os.environ.get(FOLDER)
    if not named:
        raise StandInError(f"{FOLDER} is not set; `make test-ascend` builds the stand-ins and sets it")
    path = Path(named).absolute()
    if not (path / MANIFEST).exists():
        raise StandInError(f"no stand-ins in {path}; python -m tests.offline_ascend.standin.build {path}")
    built = json.loads((path / MANIFEST).read_text())["torch_npu"]
    found = importlib.metadata.version("torch_npu")
    if built != found:
        raise StandInError(f"the stand-ins in {path} are for torch_npu {built}, {found} is installed; build them again")
    if os.environ.get(AUTOLOAD) != "0":
        raise StandInError(f"set {AUTOLOAD}=0: otherwise `import torch` looks for CANN before the stand-ins are there")
    return path


@cache
def libraries() -> ctypes.CDLL:
    """Load the libraries for all that comes after, by path; the linker then finds their names loaded."""
    os.environ.setdefault("TASK_QUEUE_ENABLE", "0")  # launch in the calling thread: errors rise where they happen
    path = folder()
    everything = ctypes.CDLL(str(path / ALL), mode=ctypes.RTLD_GLOBAL)
    for library in sorted(path.glob("lib*.so")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return everything


def load() -> None:
    """Import torch_npu, and its two engines in the only order that works: torchair, then npugraph_ex."""
    libraries()
    import torch_npu  # noqa: F401
    from torch_npu.dynamo import torchair  # noqa: F401

    from tests.offline_ascend.standin import ge

    ge.stand_in()
    from torch_npu.dynamo import npugraph_ex  # noqa: F401
