"""Shared pieces: a tiny GLM-4.5, its captured graph, and the stages run on a copy of it."""

from __future__ import annotations

import gc
import logging
import os
import random
from collections.abc import Iterator

import pytest

from glmfuse.ascend.aside import set_aside

if os.environ.get("CANN_STAND_INS"):
    from tests.offline_ascend.standin import load

    load.load()
else:
    set_aside()  # before torch: these are tests on a CPU, with or without a torch_npu that lacks CANN

import torch


@pytest.fixture(autouse=True)
def _isolated_compiler() -> Iterator[None]:
    """Each test compiles from nothing, draws the same numbers, and runs without grad."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    random.seed(0)
    logging.getLogger("torch._guards").setLevel(logging.CRITICAL)
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_full_collections() -> None:
    """Traces and caches of all patterns live as long as the process; walking them took a sixth of the tests' time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def _quiet_fake_tensors() -> None:
    """Mutants that are no graphs fail in fake tensors, which log each of them with its stack."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
