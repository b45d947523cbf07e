"""What `glmfuse kernels check` is worth: kernels with one mistake each, and every mistake must show.

A mutant is the source of a kernel with one piece of text replaced, in a file of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import glmfuse.lowering.pypto
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.checking import check
from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.family import geometry
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.registry import KERNELS

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

KERNEL_FOLDER = Path(glmfuse.lowering.pypto.__file__).parent / "kernels"

MUTANTS = {
    "a wrong sign in rotary": (
        "rotary",
        "pypto.sub(product(first, cos, 0)",
        "pypto.add(product(first, cos, 0)",
    ),
    "the sine of the other half": (
        "rotary",
        "product(first, sin, half)",
        "product(first, sin, 0)",
    ),
    "a product of rotary not rounded": (
        "rotary",
        "return rounded(pypto.mul(part,",
        "return (lambda v, _: v)(pypto.mul(part,",
    ),
    "the passed channels from the start": (
        "rotary",
        "at.cut(value, everyone, (rotary, head_dim - rotary))",
        "at.cut(value, everyone, (0, head_dim - rotary))",
    ),
    "eps dropped": (
        "rms_norm",
        "pypto.sqrt(pypto.add(mean, eps))",
        "pypto.sqrt(mean)",
    ),
    "the mean of another width": (
        "rms_norm",
        "1.0 / width",
        "1.0 / (width - 1)",
    ),
    "not rounded before the weight": (
        "rms_norm",
        "rounded(scaled, element)",
        "scaled",
    ),
    "the last token skipped": (
        "rms_norm",
        "Block(block, i, tokens)",
        "Block(block, i, tokens - 1)",
    ),
    "a tile stored one row too far": (
        "add_rms_norm",
        "at.put(both, total, 0)",
        "pypto.assemble(both, [at.start + 1, 0], total)",
    ),
    "the sum stored without the residual": (
        "add_rms_norm",
        "at.put(both, total, 0)",
        "at.put(pypto.cast(widened(at.of(x, hidden)), element), total, 0)",
    ),
    "gate and up exchanged": (
        "swiglu",
        "widened(gate)\n",
        "widened(up)\n",
    ),
    "the exponential of the wrong sign": (
        "swiglu",
        "pypto.mul(wide, -1.0)",
        "pypto.mul(wide, 1.0)",
    ),
    "a weight not transposed into place": (
        "swiglu_mlp",
        "halves(at, products[0], inter) if merged else products",
        "halves(at, products[0], inter) if merged else products[::-1]",
    ),
    "the bias dropped": (
        "linear",
        "pypto.add(at.cut(product, (0, out)), at.spread(bias, out))",
        "at.cut(product, (0, out))",
    ),
    "the choice without its bias": (
        "route_topk",
        "pypto.add(scores, bias)",
        "pypto.add(scores, 0.0)",
    ),
    "weights of the biased scores": (
        "route_topk",
        "pypto.gather(scores, 1, chosen)",
        "pypto.gather(choice, 1, chosen)",
    ),
    "weights not scaled": (
        "route_topk",
        "pypto.mul(taken, self.scale)",
        "pypto.mul(taken, 1.0)",
    ),
    "experts of all groups": (
        "route_topk",
        "if self.n_group > 1:",
        "if self.n_group > 99:",
    ),
    "the groups' best instead of the sum of two": (
        "route_topk",
        "pypto.topk(grouped, 2, -1, True)",
        "pypto.topk(grouped, 1, -1, True)",
    ),
    "the scale of scores dropped": (
        "attention",
        "valid_shape=[group, left]), plan.scale)",
        "valid_shape=[group, left]), 1.0)",
    ),
    "masked tokens kept": (
        "attention",
        "pypto.where(row, scores, _MASKED)",
        "pypto.where(row, scores, 0.0)",
    ),
    "pieces merged as equals": (
        "attention",
        "pypto.exp(pypto.sub(logs, pypto.amax(logs, 0, True)))",
        "pypto.exp(pypto.mul(logs, 0.0))",
    ),
    "what the first rounding leaves, left out": (
        "attention",
        "pypto.assemble(rest, [group, 0], weights)",
        "pypto.assemble(pypto.mul(rest, 0.0), [group, 0], weights)",
    ),
    "a length one too short": (
        "paged_attention",
        "length = lengths[i // plan.kv_heads]",
        "length = lengths[i // plan.kv_heads] - 1",
    ),
    "a slice of hidden left out": (
        "gate_topk",
        "[0, index * depth])\n            product",
        "[0, 0])\n            product",
    ),
    "keys with the queries' weight": (
        "norm_qkv_rope",
        "(queries, keys, weights[1])",
        "(queries, keys, weights[2])",
    ),
    "no norm of queries and keys": (
        "norm_qkv_rope",
        "if front.has_qk_norm:",
        "if False and front.has_qk_norm:",
    ),
    "values from the keys' heads": (
        "norm_qkv_rope",
        "self.sum_of(products, turning, front.kv_heads)",
        "self.sum_of(products, front.heads, front.kv_heads)",
    ),
    "projections not rounded": (
        "norm_qkv_rope",
        "return rounded(value, self.element)",
        "return value",
    ),
}
"""Kernel, text, and what takes its place."""

HIDDEN = {
    "valid_shape forgotten before a sum": ("gate_topk", "[0, 0, 0], valid_shape=valid)", "[0, 0, 0])"),
}
"""Mistakes that only the interpretation after each pass shows."""

REFUSED = {
    "valid_shape forgotten": ("rms_norm", "Block(block, i, tokens)", "Block(block, i, (i + 1) * block)"),
    "valid_shape forgotten in a constant": (
        "route_topk",
        "at.full(1.0, self.experts)",
        "pypto.full([at.size, self.experts], 1.0, pypto.DT_FP32)",
    ),
}
"""Mistakes that PyPTO itself refuses."""

SHAPES = {"gate_topk": "glm-4.5/tp8"}
"""Where a mutant needs another shape than the tiny one: few columns are not sliced there."""


def mutated(name: str, old: str, new: str, folder: Path) -> PyptoKernel:
    """The registered kernel, built from a changed copy of its source."""

    def launch(chip: Chip, **arguments: Any) -> Launch:
        made = KERNELS[name].launch(chip, **arguments)
        module = made.kernel.builder.rpartition(":")[0].rpartition(".")[2]
        source = (KERNEL_FOLDER / f"{module}.py").read_text()
        assert old in source, "the mutation is of text that is no longer there"
        path = folder / f"{module}_mutant.py"
        path.write_text(source.replace(old, new))
        return replace(made, kernel=replace(made.kernel, builder=f"{path}:build"))

    return replace(KERNELS[name], launch=launch)


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_in_a_kernel_shows(mistake: str, tmp_path: Path) -> None:
    name, old, new = MUTANTS[mistake]
    found = check(name, SHAPES.get(name, "tiny"), 5, kernel=mutated(name, old, new, tmp_path))
    assert not found.passed, found
    assert found.failure == "" or "behind its last row" in found.failure, "it must run, and give a wrong result"


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_kernel_that_does_not_compile_fails_the_check(mistake: str, tmp_path: Path) -> None:
    name, old, new = REFUSED[mistake]
    found = check(name, SHAPES.get(name, "tiny"), 5, kernel=mutated(name, old, new, tmp_path))
    assert not found.passed
    assert found.failure


@pytest.mark.parametrize("mistake", HIDDEN)
def test_a_mistake_that_only_late_passes_show(mistake: str, tmp_path: Path) -> None:
    name, old, new = HIDDEN[mistake]
    wide = replace(geometry("tiny"), hidden=2048, experts=16)
    found = check(name, wide, 5, kernel=mutated(name, old, new, tmp_path), passes=True)
    assert found.error <= found.allowed
    assert "THROWN" in found.failure, found


@pytest.mark.parametrize("name", sorted({name for name, _, _ in MUTANTS.values()}))
def test_a_copy_without_a_mistake_passes(name: str, tmp_path: Path) -> None:
    found = check(name, SHAPES.get(name, "tiny"), 5, kernel=mutated(name, "pypto", "pypto", tmp_path))
    assert found.passed, found
