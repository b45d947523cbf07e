"""Without the stand-ins nothing here is collected; with them, which ../conftest.py loads, the fake device computes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("CANN_STAND_INS") else ["*"]

if os.environ.get("CANN_STAND_INS"):
    from tests.offline_ascend.standin import device, vllm_ascend

    device.install()
    vllm_ascend.install()

    # As where the variable CI is set: one warning of an operator that hands back its arguments is a failed test.
    torch._functorch.config.error_on_custom_op_aliasing = True


@pytest.fixture
def out_operators_unchecked() -> Iterator[None]:
    """For operators that hand back their arguments, which their schemas do not say.

    npugraph_ex's `.out` ones do, and `_npu_moe_token_unpermute`, whose second result is the rows that it was given.
    """
    with torch._functorch.config.patch(check_custom_op_aliasing=False):
        yield


@pytest.fixture
def on_a_chip_with_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins have one device, an Ascend910B1; its references take FP8 all the same."""
    monkeypatch.setattr("glmfuse.quantization.npu.place.soc_name", lambda: "Ascend950PR_9589")
