"""The verdict of each pass that was interpreted, from pypto's log.

Its table of verdicts is written only when the process ends, and a pass whose interpretation throws has no
row there; the log has both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from glmfuse.lowering.pypto.process.messages import PASSED

_VERDICT = re.compile(r"_Pass_(\d+_\w+) Verify for [^\n]* result (\w+)")
_THROWN = re.compile(r"VerifyPass failed for function \w+, pass (\w+) \(passIndex: (\d+),[^\n]*\n([^\[]*)")

Mark = Mapping[Path, int]


def mark() -> Mark:
    """Where the logs end now."""
    return {path: path.stat().st_size for path in _logs()}


def verdicts_since(start: Mark) -> Mapping[str, str]:
    """The worst verdict of each pass in what was logged since, by its number and name."""
    found: dict[str, str] = {}
    for path in _logs():
        text = path.read_text(errors="replace")[start.get(path, 0) :]
        for name, verdict in _VERDICT.findall(text):
            if found.get(name, PASSED) == PASSED:
                found[name] = verdict
        for name, index, reason in _THROWN.findall(text):
            found[f"{int(index):02}_{name}"] = f"THROWN {reason.strip()}"
    return found


def _logs() -> list[Path]:
    return sorted(Path(os.environ["ASCEND_PROCESS_LOG_PATH"]).rglob("*.log"))
