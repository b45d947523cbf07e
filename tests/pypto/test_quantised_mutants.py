"""Quantised kernels with one mistake each, and every mistake must show in what `glmfuse kernels check` does.

A mutant is the source of a kernel, or of the codes that it makes, with one piece of text replaced.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.checking import check
from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.registry import KERNELS
from tests.pypto.test_mutants import KERNEL_FOLDER, mutated

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

_SCALE_ROW = "[2 * group + index, 0]"

MUTANTS = {
    "the int32 bias dropped": ("norm_qkv_rope_w8a8", "sums = pypto.add(sums, bias)", "sums = sums"),
    "factor and offset exchanged": (
        "norm_qkv_rope_w8a8",
        "widened(hidden), factor, offset,",
        "widened(hidden), offset, factor,",
    ),
    "the scales of a front forgotten": (
        "norm_qkv_rope_w8a8_dynamic",
        "value = undone(sums, scale, per_token)",
        "value = undone(sums, scale, None)",
    ),
    "the float bias dropped": (
        "norm_qkv_rope_w8a8_dynamic",
        "value = pypto.add(value, at.spread(bias, count, front.head_dim))",
        "value = value",
    ),
    "a quantised projection not rounded": (
        "norm_qkv_rope_w8a8_dynamic",
        "return rounded(value, self.element)",
        "return value",
    ),
    "queries normalised by the keys' weight": ("norm_qkv_rope_w8a8", "self.gain(gains[index])", "self.gain(gains[1])"),
    "gate and up exchanged": ("swiglu_mlp_w8a8_dynamic", "plan.merged else wide\n", "plan.merged else wide[::-1]\n"),
    "the scales of tokens left out": (
        "swiglu_mlp_w8a8_dynamic",
        "undone(sums, scale, per_token), self.element)",
        "undone(sums, scale, None), self.element)",
    ),
    "the scales that rows come with left out": (
        "quant_mlp_w8a8_dynamic",
        "self.floats(part, scale, per_token) for",
        "self.floats(part, scale, None) for",
    ),
    "gate and up not rounded": (
        "swiglu_mlp_w8a8_dynamic",
        "self.floats(part, scale, per_token) for",
        "undone(part, scale, per_token) for",
    ),
    "the codes of the sum and not of its norm": (
        "norm_dynamic_quantize",
        "by_largest(at, widened(norm), _CODES)",
        "by_largest(at, widened(part), _CODES)",
    ),
    "experts chosen without their bias": (
        "router_mlp_w8a8_dynamic",
        "project(at, x, w), bias, weights",
        "project(at, x, w), pypto.mul(bias, 0.0), weights",
    ),
    "nibbles exchanged": (
        "swiglu_mlp_w4a8_dynamic",
        "return _as_int8(low), _as_int8(high)",
        "return _as_int8(high), _as_int8(low)",
    ),
    "a low nibble without its sign": ("swiglu_mlp_w4a8_dynamic", "_as_int8(low),", "_as_int8(rest),"),
    "odd inputs left out": ("swiglu_mlp_w4a8_dynamic", "[pypto.add(even, odd) for", "[even for"),
    "one group's scales for all": ("swiglu_mlp_w4a8_dynamic", _SCALE_ROW, "[index, 0]"),
    "the scales of the other outputs": ("swiglu_mlp_w4a8_dynamic", _SCALE_ROW, "[2 * group + 1 - index, 0]"),
    "the largest of even columns alone": (
        "swiglu_mlp_w4a8_dynamic",
        "pypto.maximum(*(pypto.amax(pypto.abs(part), -1, True) for part in active))",
        "pypto.amax(pypto.abs(active[0]), -1, True)",
    ),
    "an int32 bias of quant_linear dropped": ("quant_linear", "sums = pypto.add(sums, added)", "sums = sums"),
    "the scales of tokens dropped": ("quant_linear", "at.of(scales, 1) if per_token else None", "None"),
}
"""Kernel, text, and what takes its place."""

CODES = {
    "cut off instead of rounded": ("DT_INT32, pypto.CastMode.CAST_RINT", "DT_INT32, pypto.CastMode.CAST_TRUNC"),
    "the largest number without its sign": ("pypto.amax(pypto.abs(value), -1, True)", "pypto.amax(value, -1, True)"),
    "128 for the largest": ('"DT_INT8": 127.0', '"DT_INT8": 128.0'),
    "rows undone by what they were multiplied by": ("pypto.div(at.full(1.0, 1), factor)", "pypto.mul(factor, 1.0)"),
}
"""Mistakes in the codes, in a kernel that makes them of x."""

STATIC_CODES = {
    "the offset dropped": ("at.spread(offset, channels))", "pypto.mul(at.spread(offset, channels), 0.0))"),
    "-128 left out": ("-128.0, 127.0", "-127.0, 127.0"),
    "the factor of another channel": (
        "pypto.mul(value, at.spread(factor, channels))",
        "pypto.mul(value, pypto.mul(at.spread(offset, channels), 8.0))",
    ),
}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_in_a_quantised_kernel_shows(mistake: str, tmp_path: Path) -> None:
    name, old, new = MUTANTS[mistake]
    found = check(name, "tiny", 5, kernel=mutated(name, old, new, tmp_path))
    assert not found.passed, found
    assert found.failure == "", "it must run, and give a wrong result"


@pytest.mark.parametrize(
    ("name", "mistake"), [*(("dynamic_quantize", m) for m in CODES), *(("quantize", m) for m in STATIC_CODES)]
)
def test_a_mistake_in_codes_shows(name: str, mistake: str, tmp_path: Path) -> None:
    found = check(name, "tiny", 5, kernel=with_codes(name, *(CODES | STATIC_CODES)[mistake], tmp_path))
    assert not found.passed, found
    assert found.failure == "", "it must run, and give a wrong result"


@pytest.mark.parametrize("name", sorted({name for name, _, _ in MUTANTS.values()}))
def test_a_copy_without_a_mistake_passes(name: str, tmp_path: Path) -> None:
    assert check(name, "tiny", 5, kernel=mutated(name, "pypto", "pypto", tmp_path)).passed


def with_codes(name: str, old: str, new: str, folder: Path) -> PyptoKernel:
    """The registered kernel, over a changed copy of the codes; a module of its own, since the worker keeps modules."""
    source = (KERNEL_FOLDER / "codes.py").read_text()
    assert old in source, "the mutation is of text that is no longer there"
    module = f"codes_{sha1(new.encode()).hexdigest()[:8]}"
    (folder / f"{module}.py").write_text(source.replace(old, new))

    def launch(chip: Chip, **arguments: Any) -> Launch:
        made = KERNELS[name].launch(chip, **arguments)
        own = made.kernel.builder.rpartition(":")[0].rpartition(".")[2]
        text = (KERNEL_FOLDER / f"{own}.py").read_text()
        path = folder / f"{own}_{module}.py"
        found = f"import sys\n\nsys.path.insert(0, {str(folder)!r})\n\nfrom {module} import"
        path.write_text(text.replace("from glmfuse.lowering.pypto.kernels.codes import", found))
        return replace(made, kernel=replace(made.kernel, builder=f"{path}:build"))

    return replace(KERNELS[name], launch=launch)
