"""Where CANN is and which version it is, by what its set_env.sh leaves in the environment; loads nothing of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

HOME: Final = "ASCEND_HOME_PATH"


def home() -> Path | None:
    """The folder that set_env.sh names, or None where it was not sourced, or names none that exists."""
    named = os.environ.get(HOME)
    return Path(named) if named and Path(named).is_dir() else None


def gone() -> str | None:
    """Why the folder that is named is none, or None. torch_npu raises at its import then, and only then."""
    if HOME not in os.environ or home() is not None:
        return None
    named = os.environ[HOME]
    return f"{HOME} names {named!r}, which is no folder; source the set_env.sh of the CANN that is installed"


def unavailable() -> str | None:
    """Why CANN is not found, with what to do, or None."""
    if home() is not None:
        return None
    return gone() or f"{HOME} is not set; install CANN (toolkit and kernels for your NPU), and source its set_env.sh"


def version(folder: Path) -> str | None:
    """The version in `ascend_<package>_install.info`, such as "8.3.RC1"; None where no such file says.

    Source: torch_npu 2.13.0, utils/collect_env.py, `get_cann_version`.
    """
    for pattern in ("*/ascend_*_install.info", "ascend_*_install.info"):
        for info in sorted(folder.glob(pattern)):
            for line in info.read_text(errors="replace").splitlines():
                name, _, value = line.partition("=")
                if name.strip() == "version" and value.strip():
                    return value.strip()
    return None
