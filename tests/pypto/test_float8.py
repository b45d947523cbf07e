"""Float8 kernels beside their pattern functions, both with the conversions of float8 that PyPTO's interpreter has.

pypto 0.2.0 has the platform file of one SoC, which multiplies no float8; here a copy of the package names another
architecture. Its interpreter converts to float8 as no chip does, in every mode (`interpreted_float8`), so the pattern
functions are run with that conversion: all else that a kernel computes is held to their bits, the conversion itself is
not. No times either: the cost model knows this one SoC. Nothing ran on a chip.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.checking import check, distance
from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.launch import interpret
from glmfuse.lowering.pypto.process import KernelRef, Mode, Request, run
from glmfuse.lowering.pypto.process import worker as process
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from tests.pypto.interpreted_float8 import FP8, WHOLE, as_interpreted, decoded, encoded
from tests.pypto.names import FLOAT8
from tests.pypto.test_mutants import mutated
from tests.pypto.test_quantised_mutants import with_codes

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

WITH_FLOAT8 = replace(ASCEND_910B, name="with float8", has_float8=True)
ALLOWED = KERNEL_RELATIVE_L2[torch.bfloat16]


@pytest.fixture(scope="module")
def of_another_soc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, process.Worker]]:
    """A copy of pypto that takes its SoC for one with float8, and a worker for it."""
    folder = tmp_path_factory.mktemp("float8")
    source = find_spec("pypto")
    assert source is not None
    assert source.origin is not None
    shutil.copytree(Path(source.origin).parent, folder / "pypto")
    platform = folder / "pypto" / "lib" / "configs" / "A2A3.ini"
    text = platform.read_text()
    assert "NpuArch=2201" in text
    platform.write_text(text.replace("NpuArch=2201", "NpuArch=3510"))
    made = process.Worker()
    yield folder, made
    made.close()


@pytest.fixture
def float8(of_another_soc: tuple[Path, process.Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in that worker."""
    folder, worker = of_another_soc
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setitem(process._WORKERS, os.getpid(), worker)


def numbers() -> Tensor:
    """Every number of float8_e4m3fn, what lies between and beyond, and halves.  [16, 64] fp32."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    drawn = torch.cat([torch.randn(190) * spread for spread in (200.0, 20.0, 1.0, 0.01)])
    return torch.cat([codes[codes.isfinite()], drawn, torch.arange(10) + 0.5]).view(16, 64)


@pytest.mark.parametrize("dtype", ["DT_FP32", "DT_BF16", "DT_FP16"])
@pytest.mark.parametrize("mode", WHOLE)
def test_the_interpreter_makes_whole_numbers_of_what_becomes_float8(mode: str, dtype: str) -> None:
    """Where this fails, a PyPTO came that converts; then the kernels are to be held to their patterns as they are."""
    x = numbers().to({"DT_FP32": torch.float32, "DT_BF16": torch.bfloat16, "DT_FP16": torch.float16}[dtype])
    for saturation in ("OFF", "ON"):
        kernel = KernelRef.of("tests.pypto.casts:build_there_and_back", dtype=dtype, mode=mode, saturation=saturation)
        outcome = run(Request(kernel, Mode.INTERPRET, (x,), ((tuple(x.shape), torch.float32),)))
        assert outcome.error is None
        assert torch.equal(outcome.tensors[0], decoded(encoded(x, mode)))
        assert not torch.equal(outcome.tensors[0], x.float().clamp(-448, 448).to(FP8).float())


def test_the_interpreter_reads_codes_beyond_240_as_240() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(FP8).view(4, 64)
    kernel = KernelRef.of("tests.pypto.casts:build_back")
    outcome = run(Request(kernel, Mode.INTERPRET, (x,), (((4, 64), torch.float32),)))
    assert outcome.error is None
    assert torch.equal(outcome.tensors[0], decoded(x))
    assert (outcome.tensors[0] != x.float()).sum() == 16


def product() -> tuple[Request, Tensor]:
    """A product of codes of which some are beyond 240, and what it is of codes as they are read."""
    x, w = ((torch.randn(shape) * 100).to(FP8) for shape in ((16, 64), (64, 32)))
    kernel = KernelRef.of("tests.pypto.casts:build_product")
    request = Request(kernel, Mode.COMPILE, (x, w), (((16, 32), torch.float32),))
    return request, decoded(x).double() @ decoded(w).double()


def test_products_are_those_of_codes_as_they_are_read(float8: None) -> None:
    request, expected = product()
    outcome = run(request)
    assert outcome.error is None
    error = (outcome.tensors[0] - expected).norm() / expected.norm()
    assert error <= KERNEL_RELATIVE_L2[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 31, 32, 33])
@pytest.mark.parametrize("name", FLOAT8)
def test_a_float8_kernel_is_its_pattern_but_for_the_conversion(
    name: str, tokens: int, dtype: torch.dtype, float8: None
) -> None:
    found = check(name, "tiny", tokens, dtype, seed=tokens, chip=WITH_FLOAT8, function=as_interpreted(name))
    assert found.passed, found


@pytest.mark.parametrize("shape", ["glm-4.5/tp8", "glm-4.5-air/tp8"])
@pytest.mark.parametrize("name", FLOAT8)
def test_at_real_sizes_too(name: str, shape: str, float8: None) -> None:
    found = check(name, shape, 8, chip=WITH_FLOAT8, function=as_interpreted(name))
    assert found.passed, found


@pytest.mark.parametrize("name", FLOAT8)
def test_the_conversion_is_what_keeps_them_apart(name: str, float8: None) -> None:
    """Beside the pattern function as it is, what the interpreter says of such a kernel is worth nothing."""
    found = check(name, "tiny", 5, chip=WITH_FLOAT8)
    assert found.failure == ""
    assert found.error > 0.1


@pytest.mark.parametrize("name", FLOAT8)
def test_every_pass_keeps_the_numerics(name: str, float8: None) -> None:
    """But of a front those after the 31st, of which the interpreter runs none, nor of the front without float8.

    A pass of this architecture alone puts views behind what reads them; on a chip a view is an address.
    """
    fronts = {"norm_qkv_rope_fp8_per_token": ("norm_qkv_rope", name)}.get(name, (name,))
    for each in fronts:
        function = as_interpreted(each)
        found = check(each, "tiny", 5, chip=WITH_FLOAT8, function=function, passes=True)
        assert found.error <= found.allowed, found
        assert found.failure[:34] == ("pass 32_TuneTileOpSeqForVF: THROWN" if len(fronts) > 1 else ""), found


def agrees(name: str, values: dict[str, Any]) -> bool:
    found = interpret(KERNELS[name].launch(WITH_FLOAT8, **values), Mode.COMPILE)
    return distance(name, found, values, as_interpreted(name)) <= ALLOWED


def rows_of(values: dict[str, Any]) -> Tensor:
    return values["x"].view(-1, values["x"].shape[-1])


def of_zeros(values: dict[str, Any]) -> None:
    rows_of(values)[1] = 0


def of_subnormals(values: dict[str, Any]) -> None:
    rows = rows_of(values)
    rows[3] = torch.where(rows[3] > 0, 9.2e-41, -9.2e-41)


def huge(values: dict[str, Any]) -> None:
    rows_of(values)[0, 3], rows_of(values)[4, 5] = 3.0e4, -3.0e4


@pytest.mark.parametrize("change", [of_zeros, of_subnormals, huge])
@pytest.mark.parametrize("name", FLOAT8)
def test_rows_at_the_ends(name: str, change: Any, float8: None) -> None:
    values = arguments(name, geometry("tiny"), 5, torch.bfloat16, seed=1)
    if values.get("residual") is not None:
        values["residual"].zero_()
    change(values)
    assert agrees(name, values)


@pytest.mark.parametrize("name", FLOAT8)
def test_merged_weights(name: str, float8: None) -> None:
    values = arguments(name, geometry("tiny"), 33, torch.bfloat16, seed=1)
    first, others = ("q", ("k", "v")) if name.startswith("norm") else ("gate", ("up",))
    for kind in "wsb":
        parts = [values.get(f"{kind}_{part}") for part in (first, *others)]
        if parts[0] is not None:
            bits = [part.view(torch.uint8) if kind == "w" else part for part in parts]
            values[f"{kind}_{first}"] = torch.cat(bits, -1).view(parts[0].dtype)
            values |= {f"{kind}_{part}": None for part in others}
    assert agrees(name, values)


MISTAKES = {
    "240 for the largest": ('"DT_FP8E4M3": 448.0', '"DT_FP8E4M3": 240.0'),
    "cut off instead of rounded": (
        "code, pypto.CastMode.CAST_RINT",
        "code, pypto.CastMode.CAST_TRUNC",
    ),
    "products summed in bf16": ("else pypto.DT_FP32", "else pypto.DT_BF16"),
    "rows not undone": ("if per_token is None else pypto.mul(value, per_token)", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_codes_of_float8_shows(mistake: str, float8: None, tmp_path: Path) -> None:
    name = "swiglu_mlp_fp8_per_token"
    kernel = with_codes(name, *MISTAKES[mistake], tmp_path)
    found = check(name, "tiny", 5, kernel=kernel, chip=WITH_FLOAT8, function=as_interpreted(name))
    assert not found.passed, found
    assert found.failure == "", "it must run, and give a wrong result"


def test_gate_and_up_exchanged_show(float8: None, tmp_path: Path) -> None:
    name = "swiglu_mlp_fp8_per_token"
    kernel = mutated(name, "plan.merged else wide\n", "plan.merged else wide[::-1]\n", tmp_path)
    found = check(name, "tiny", 5, kernel=kernel, chip=WITH_FLOAT8, function=as_interpreted(name))
    assert not found.passed
    assert found.failure == ""


def test_pypto_itself_refuses_products_of_float8_on_this_soc() -> None:
    assert "only DAV_3510 architecture" in str(run(product()[0]).error)
    launch = KERNELS["swiglu_mlp_fp8_per_token"].launch(
        WITH_FLOAT8, **arguments("swiglu_mlp_fp8_per_token", geometry("tiny"), 5, torch.bfloat16)
    )
    with pytest.raises(KernelError, match="only DAV_3510 architecture"):
        interpret(launch, Mode.INTERPRET)
