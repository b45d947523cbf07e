"""Without the stand-ins nothing here is collected; with them, which ../conftest.py loads, the fake device computes."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CANN_STAND_INS") else ["*"]

if os.environ.get("CANN_STAND_INS"):
    from tests.offline_ascend.standin import device, vllm_ascend

    device.install()
    vllm_ascend.install()
