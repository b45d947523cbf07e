"""Whether torch_npu's operators can be used here, and which of them this build has."""

from __future__ import annotations

from typing import Final

import torch

from glmfuse.ascend import installed

_CHIPS: Final = ("Ascend910B", "Ascend910_93")
"""What torch_npu calls the chips of Atlas A2 and A3: limits and roundings here are those of their kernels."""


def unavailable() -> str | None:
    """Why the target cannot be used here, with what to do, or None."""
    if (reason := installed.unavailable()) is not None:
        return reason
    name = str(installed.soc_name())
    if not name.startswith(_CHIPS):
        return f"its kernels are declared for Atlas A2 and A3 ({', '.join(_CHIPS)}), and this is {name}"
    return None


def missing(names: tuple[str, ...]) -> str | None:
    """Which operators this build of torch_npu lacks, or None."""
    absent = [name for name in names if not hasattr(torch.ops.npu, name)]
    return f"this build of torch_npu has no {' and no '.join(absent)}" if absent else None
