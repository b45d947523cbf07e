"""What the target asks of this machine, in one place."""

from __future__ import annotations

import sys
from typing import Any, Final

import torch

_CHIPS: Final = ("Ascend910B", "Ascend910_93")
"""What torch_npu calls the chips of Atlas A2 and A3: limits and roundings here are those of their kernels."""


def unavailable() -> str | None:
    """Why torch_npu's operators cannot be used here, with what to do, or None."""
    if "torch_npu" not in sys.modules:
        return "torch_npu is not loaded; on a machine with an Ascend NPU install CANN and torch_npu, and import it"
    npu: Any = getattr(torch, "npu", None)
    if npu is None or not npu.is_available():
        return "torch_npu finds no NPU; look at npu-smi info, and source CANN's set_env.sh before Python starts"
    name = str(npu.get_device_name(0))
    if not name.startswith(_CHIPS):
        return f"its kernels are declared for Atlas A2 and A3 ({', '.join(_CHIPS)}), and this is {name}"
    return None


def missing(names: tuple[str, ...]) -> str | None:
    """Which operators this build of torch_npu lacks, or None."""
    absent = [name for name in names if not hasattr(torch.ops.npu, name)]
    return f"this build of torch_npu has no {' and no '.join(absent)}" if absent else None
