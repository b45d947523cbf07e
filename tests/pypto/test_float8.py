"""Float8 kernels compile, where PyPTO is told that the SoC has float8; what they compute is not checked.

pypto 0.2.0 has the platform file of one SoC, which multiplies none; here a copy of the package names another
architecture. Its interpreter rounds to whole numbers before it casts to float8 and reads numbers beyond 240 as 240, so
its results say nothing of the rounding. No times either: the cost model knows this one SoC. Nothing ran on a chip.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.launch import checked, interpret, request_of
from glmfuse.lowering.pypto.process import Mode
from glmfuse.lowering.pypto.process.worker import Worker
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.patterns import BY_NAME
from tests.pypto.names import FLOAT8

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

WITH_FLOAT8 = replace(ASCEND_910B, name="with float8", has_float8=True)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker of its own, over the copy."""
    folder = tmp_path_factory.mktemp("float8")
    source = find_spec("pypto")
    assert source is not None
    assert source.origin is not None
    shutil.copytree(Path(source.origin).parent, folder / "pypto")
    platform = folder / "pypto" / "lib" / "configs" / "A2A3.ini"
    text = platform.read_text()
    assert "NpuArch=2201" in text
    platform.write_text(text.replace("NpuArch=2201", "NpuArch=3510"))
    made = Worker()
    with pytest.MonkeyPatch.context() as patch:  # of this worker alone
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        made._start()
    yield made
    made.close()


@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("name", FLOAT8)
def test_a_float8_kernel_compiles_through_all_passes(name: str, tokens: int, worker: Worker) -> None:
    values = arguments(name, geometry("tiny"), tokens, torch.bfloat16, seed=tokens)
    launch = KERNELS[name].launch(WITH_FLOAT8, **values)
    outcome = worker.call(request_of(launch, Mode.COMPILE), 300)
    found = launch.finish(checked(outcome, launch, Mode.COMPILE).tensors)
    expected = BY_NAME[name].function(**values)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


def test_pypto_itself_refuses_float8_on_this_soc() -> None:
    launch = KERNELS["swiglu_mlp_fp8_per_token"].launch(
        WITH_FLOAT8, **arguments("swiglu_mlp_fp8_per_token", geometry("tiny"), 5, torch.bfloat16)
    )
    with pytest.raises(KernelError):
        interpret(launch, Mode.INTERPRET)
