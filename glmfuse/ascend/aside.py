"""Going on without a torch_npu that cannot be imported.

Torch imports it at its own import, and transformers at that of a model, each without catching what goes wrong.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Final

from glmfuse.ascend.installed import is_loaded, mispaired, torch_npu_version, without_cann

AUTOLOAD: Final = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def loads_itself() -> bool:
    """Whether `import torch` would import torch_npu. Source: torch/__init__.py, `_import_device_backends`."""
    return torch_npu_version() is not None and os.environ.get(AUTOLOAD, "1") == "1"


@dataclass(frozen=True, slots=True)
class Aside:
    """A torch_npu that this process does without. breaks_torch: a plain `import torch` would have failed of it."""

    reason: str
    breaks_torch: bool


def set_aside() -> Aside | None:
    """Let this process and its children go on as if a torch_npu that cannot work were not there.

    Call it before torch is imported. A torch_npu that is loaded, or can be, stays, and None is returned.
    """
    if is_loaded() or torch_npu_version() is None or (reason := mispaired() or without_cann()) is None:
        return None
    aside = Aside(reason, loads_itself())
    hide()
    return aside


def hide() -> None:
    """Make torch_npu as good as not installed for this process: neither torch nor anyone else imports it."""
    os.environ[AUTOLOAD] = "0"
    sys.modules["torch_npu"] = None  # type: ignore[assignment]  # Python's own mark for what must not be imported
