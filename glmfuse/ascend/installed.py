"""Whether torch_npu and an NPU can be used in this process, and if not, why, with what to install.

Nothing here imports torch or torch_npu: where CANN is missing, either import fails. Nothing here raises.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from glmfuse.ascend import cann
from glmfuse.ascend.libraries import missing


def torch_npu_version() -> str | None:
    """The build of torch_npu that is installed, such as "2.13.0" or "2.11.0.post3", or None."""
    return _version("torch_npu")


def torch_version() -> str | None:
    """The torch that is installed, or None."""
    return _version("torch")


def is_loaded() -> bool:
    """Whether torch_npu was imported into this process, wholly."""
    return npu() is not None


def device_count() -> int:
    """NPUs that this process sees; 0 where torch_npu is not loaded, or asking fails."""
    try:
        return int(npu().device_count())
    except Exception:  # what torch_npu or its driver raise here, is no device
        return 0


def soc_names() -> tuple[str, ...]:
    """The SoC of each NPU, such as "Ascend910B1"; opens no device. Empty where asking fails.

    CANN names one SoC for a process (aclrtGetSocName), and torch_npu 2.13 gives that name to every device.
    """
    try:
        return tuple(str(npu().get_device_name(index)) for index in range(device_count()))
    except Exception:  # as above
        return ()


def soc_name() -> str | None:
    """The SoC of the NPUs, or None where there is none or they are of several types."""
    names = set(soc_names())
    return names.pop() if len(names) == 1 else None


def unavailable() -> str | None:
    """Why torch_npu with a device cannot be used in this process, with what to do about it, or None."""
    build = torch_npu_version()
    if not is_loaded():
        return _not_installed() if build is None else mispaired() or without_cann() or _not_loaded(build)
    if device_count() == 0:
        return (
            f"torch_npu {build} is loaded and sees no NPU; look at `npu-smi info`, at the driver, and at "
            "ASCEND_RT_VISIBLE_DEVICES"
        )
    if len(kinds := sorted(set(soc_names()))) > 1:
        return (
            f"the NPUs are of {len(kinds)} types ({', '.join(kinds)}), and kernels are compiled for one; "
            "leave one type visible with ASCEND_RT_VISIBLE_DEVICES"
        )
    return None


def has_npu() -> bool:
    """Whether kernels can be launched on an NPU from this process."""
    return is_loaded() and unavailable() is None


def mispaired() -> str | None:
    """Why this torch_npu is not the one for this torch, or None; a build X.Y is linked against torch X.Y."""
    build, torch = torch_npu_version(), torch_version()
    if build is None or torch is None or _release(build) == _release(torch):
        return None
    wanted, given = ".".join(_release(build)), ".".join(_release(torch))
    return (
        f"torch_npu {build} needs torch {wanted}, and torch {torch} is installed; "
        f"install torch_npu {given}, or torch {wanted}"
    )


def without_cann() -> str | None:
    """What of CANN the installed torch_npu would not find, and fail to be imported without, or None."""
    if (reason := cann.gone()) is not None:
        return f"torch_npu {torch_npu_version()} cannot be imported: {reason}"
    if (library := _library()) is None or not (names := missing(library)):
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"torch_npu {torch_npu_version()} is installed, but CANN's libraries are not found ({names[0]}{more}); "
        "install CANN and source its set_env.sh. Until then, import torch with TORCH_DEVICE_BACKEND_AUTOLOAD=0"
    )


def _not_installed() -> str:
    release = ".".join(_release(torch_version() or "")) or "of torch's version"
    return f"torch_npu is not installed; on a machine with an NPU, install CANN, and then torch_npu {release}"


def _not_loaded(build: str) -> str:
    return (
        f"torch_npu {build} is installed and not loaded; import torch_npu before the model is compiled, "
        "or leave TORCH_DEVICE_BACKEND_AUTOLOAD unset"
    )


def npu() -> Any:
    """`torch.npu`, where torch_npu has put it, or None; an import that failed leaves no `torch_npu` behind."""
    return getattr(sys.modules.get("torch"), "npu", None) if sys.modules.get("torch_npu") else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[str, ...]:
    """("2", "13") of "2.13.0+cpu"."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found.groups() if found else ()


def _library() -> Path | None:
    """The library that torch_npu imports first, where the wheel has put it."""
    try:
        wheel = metadata.distribution("torch_npu")
    except metadata.PackageNotFoundError:
        return None
    return Path(str(wheel.locate_file("torch_npu/lib/libtorch_npu.so")))
