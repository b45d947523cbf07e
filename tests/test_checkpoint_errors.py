"""Damaged checkpoints: one error names every layer, with what is expected and what was found."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse import huggingface
from glmfuse.errors import CheckpointError
from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint.headers import INDEX
from glmfuse.quantization.checkpoint.modelslim import FILE
from glmfuse.quantization.inventory import parts, shapes
from tests.support.checkpoints import CONFIG, describe, edit, write

Q, GATE, DOWN = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints that are written once and copied by each test that damages them."""
    kept: dict[tuple[Any, ...], Path] = {}

    def original(*way: Any) -> Path:
        if way not in kept:
            kept[way] = write(tmp_path_factory.mktemp("whole") / "out", *way)
        return kept[way]

    return original


@pytest.fixture
def copied(originals: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    return lambda *way: Path(shutil.copytree(originals(*way), tmp_path / "out"))


def refused(folder: Path, *lines: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.open(folder)
    for line in lines:
        assert line in str(caught.value).splitlines(), f"{line!r} is not in\n{caught.value}"
    return caught.value


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: [held.pop(name) for name in names] and None


def test_described_and_not_there(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    edit(out, without(f"{Q}.deq_scale", f"{Q}.quant_bias", f"{DOWN}.weight_scale"))
    error = refused(
        out,
        f"  {Q}: expected deq_scale, quant_bias, as described, found no such tensor",
        f"  {DOWN}: expected weight_scale, as described, found no such tensor",
    )
    assert len(error.problems) == 2


def test_there_and_not_described(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    describe(out, without(f"{Q}.deq_scale", f"{Q}.quant_bias", f"{DOWN}.weight_scale"))
    refused(
        out,
        f"  {Q}: expected a description of each tensor, found deq_scale, quant_bias without one",
        f"  {DOWN}: expected a description of each tensor, found weight_scale without one",
    )


def test_missing_and_extra_scales_of_all_layers_in_one_error(copied: Callable[..., Path]) -> None:
    """Description and tensors agree with each other, and not with the types."""
    out = copied("w8a8")
    gone, strange = (f"{Q}.deq_scale", f"{DOWN}.weight_scale"), (f"{DOWN}.deq_scale", f"{GATE}.scale_bias")

    def change(tensors: dict[str, Tensor]) -> None:
        without(*gone)(tensors)
        tensors |= {name: torch.rand(64) for name in strange}

    edit(out, change)
    describe(out, without(*gone))
    describe(out, lambda said: said.update(dict.fromkeys(strange, "W8A8_DYNAMIC")))
    error = refused(
        out,
        f"  {Q}: expected W8A8: weight, input_scale, input_offset, quant_bias, deq_scale, found it lacks deq_scale",
        f"  {DOWN}: expected W8A8_DYNAMIC: weight, weight_scale, weight_offset, "
        "found it lacks weight_scale and has deq_scale besides",
        f"  {GATE}: expected W8A8_DYNAMIC: weight, weight_scale, weight_offset, found it has scale_bias besides",
    )
    assert {problem.layer for problem in error.problems} == {Q, DOWN, GATE}


SCALES = "float32 or bfloat16 or float16"
DAMAGED: dict[str, tuple[tuple[Any, ...], Callable[[Tensor], Tensor], str]] = {
    f"{Q}.deq_scale": (("w8a8",), lambda t: t[:-1].clone(), "float32 [128], found float32 [127]"),
    f"{Q}.quant_bias": (("w8a8",), lambda t: t.long(), "int32 [128], found int64 [128]"),
    f"{Q}.weight": (("w8a8",), lambda t: t.float(), "int8 [128, 64], found float32 [128, 64]"),
    f"{Q}.input_scale": (("w8a8",), lambda t: t.double(), "bfloat16 or float16 or float32 [1], found float64 [1]"),
    f"{DOWN}.weight_scale": (("w8a8_dynamic",), lambda t: t[:, 0].clone(), f"{SCALES} [64, 1], found float32 [64]"),
    f"{DOWN}.scale_bias": (
        ("w4a8_dynamic",),
        lambda t: t[:, :1].clone(),
        "float32 [64, 16], found float32 [64, 1]",
    ),
    f"{GATE}.weight_scale_second": (
        ("w4a8_dynamic", None, "1.0.0", 16),
        lambda t: t[:, :3].clone(),
        f"{SCALES} [128, 4], found float32 [128, 3]",
    ),
    f"{GATE}.weight": (
        ("fp8_per_token",),
        lambda t: t.view(torch.int8),
        "float8_e4m3fn [128, 64], found int8 [128, 64]",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_shapes_and_dtypes(name: str, copied: Callable[..., Path]) -> None:
    way, change, said = DAMAGED[name]
    out = copied(*way)
    edit(out, lambda tensors: tensors.update({name: change(tensors[name])}))
    refused(out, f"  {name}: expected {said}")


def test_an_old_weight_under_the_new_version(copied: Callable[..., Path]) -> None:
    """One int4 in an int8 is read as two in a byte, so every scale has half the rows that it should have."""
    out = copied("w4a8_dynamic", None, "0", None)
    describe(out, lambda said: said.update(version="1.0.0"))
    refused(out, f"  {GATE}.weight_scale: expected float32 or bfloat16 or float16 [256, 1], found float32 [128, 1]")


def test_a_described_group_size_that_does_not_divide(copied: Callable[..., Path]) -> None:
    out = copied("w4a8_dynamic", None, "1.0.0", 16)
    describe(out, lambda said: said.update(group_size=24))
    refused(out, f"  {GATE}: expected a group size that divides its 64 inputs, found 24")


def test_a_group_size_that_is_no_number(copied: Callable[..., Path]) -> None:
    out = copied("w4a8_dynamic")
    describe(out, lambda said: said.update(group_size="256"))
    refused(out, "  group_size: expected a number of inputs, or 0, found '256'")


def test_unknown_types_and_several_for_a_layer(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    describe(out, lambda said: said.update({f"{Q}.weight": "W4A4_FLATQUANT", f"{DOWN}.weight_scale": "FLOAT"}))
    refused(
        out,
        f"  {Q}.weight: expected a type of FLOAT, W8A8, W8A8_DYNAMIC, W4A8_DYNAMIC, found 'W4A4_FLATQUANT'",
        f"  {DOWN}: expected one type for all its tensors, found FLOAT, W8A8_DYNAMIC",
    )


def test_scales_of_a_layer_that_is_said_to_be_float(copied: Callable[..., Path]) -> None:
    out = copied("w8a8_dynamic")
    describe(out, lambda said: said.update({name: "FLOAT" for name in said if name.startswith(DOWN)}))
    refused(
        out,
        f"  {DOWN}: expected FLOAT: a floating-point weight without scales, "
        "found int8 [64, 128], weight_offset, weight_scale",
    )


def test_weights_that_are_not_symmetric(copied: Callable[..., Path]) -> None:
    out = copied("w8a8_dynamic")
    edit(out, lambda tensors: tensors[f"{DOWN}.weight_offset"].add_(1))
    found = checkpoint.open(out)
    with pytest.raises(CheckpointError, match=rf"{DOWN}: expected symmetric weights, found weight_offset other than"):
        found.tensors(DOWN)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_is_cut_off(kept: int, copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    file = sorted(out.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:kept])
    error = refused(out)
    assert error.problems[0].layer == file.name
    assert str(file.stat().st_size) in error.problems[0].found


def test_a_file_with_too_much(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    file = sorted(out.glob("*.safetensors"))[1]
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"more")
    refused(
        out, f"  {file.name}: expected {size} bytes, as its header says, found {size + 4}: copy or download it again"
    )


@pytest.mark.parametrize("header", [b"no JSON", b"[1, 2]"])
def test_a_file_that_is_no_safetensors(header: bytes, copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    file = sorted(out.glob("*.safetensors"))[1]
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert refused(out).problems[0].expected == "a safetensors header in JSON"


def test_a_file_that_is_not_there(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    file = sorted(out.glob("*.safetensors"))[1]
    file.unlink()
    refused(out, f"  {file.name}: expected a file, found No such file or directory")


def test_an_index_that_names_other_places(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    first, second = (path.name for path in sorted(out.glob("*.safetensors"))[:2])

    def change(said: dict[str, Any]) -> None:
        said["weight_map"] |= {f"{Q}.weight": first, "model.layers.7.nothing": second}
        del said["weight_map"][f"{Q}.deq_scale"]

    describe(out, change, INDEX)
    refused(
        out,
        f"  {Q}.weight: expected in {first}, found in {second}",
        f"  {Q}.deq_scale: expected a place in the index, found in {second}",
        f"  model.layers.7.nothing: expected in {second}, found nowhere",
    )


@pytest.mark.parametrize("name", [FILE, "config.json", INDEX])
@pytest.mark.parametrize(("text", "expected"), [("{", "JSON"), ("[]", "a JSON object")])
def test_documents_that_are_no_json(name: str, text: str, expected: str, copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    (out / name).write_text(text)
    problem = refused(out).problems[0]
    assert (problem.layer, problem.expected) == (name, expected)


def test_a_folder_of_no_format(copied: Callable[..., Path]) -> None:
    out = copied("w8a8")
    (out / FILE).unlink()
    describe(out, lambda said: said.update(quantization_config={"quant_method": "gptq"}), "config.json")
    refused(
        out,
        f"  the folder: expected {FILE}, or a quantization_config of compressed-tensors in config.json, "
        "found quant_method 'gptq'",
    )


def test_many_problems_are_counted(copied: Callable[..., Path]) -> None:
    out = copied("w8a8_dynamic")
    said = json.loads((out / FILE).read_text())
    scales = [name for name in said if name.endswith(".weight_scale")]
    describe(out, without(*scales))
    error = refused(out)
    assert len(error.problems) == len(scales) > 20
    assert f"and {len(scales) - 20} more" in str(error)


def expected() -> dict[str, tuple[int, ...]]:
    return shapes(parts(huggingface.make_config(CONFIG), 1))


def test_held_against_another_model(copied: Callable[..., Path]) -> None:
    found, wanted = checkpoint.open(copied("w8a8")), expected()
    wanted[Q], wanted["lm_head"], wanted["model.norm"] = (256, 64), (512, 64), (32,)
    del wanted[DOWN]
    wanted["model.layers.9.mlp.up_proj"] = (128, 64)
    with pytest.raises(CheckpointError) as caught:
        found.validate(wanted)
    assert {str(problem) for problem in caught.value.problems} == {
        f"{DOWN}: expected no such layer in the model, found weight, weight_offset, weight_scale",
        "lm_head: expected a weight [512, 64], found bfloat16 [256, 64]",
        "model.norm: expected a weight [32], found bfloat16 [64]",
        "model.layers.9.mlp.up_proj: expected a weight [128, 64], found no such layer in the checkpoint",
        f"{Q}.weight: expected int8 [256, 64], found int8 [128, 64]",
        f"{Q}.quant_bias: expected int32 [256], found int32 [128]",
        f"{Q}.deq_scale: expected float32 [256], found float32 [128]",
    }


def test_more_devices_than_scale_bias_was_summed_for(copied: Callable[..., Path]) -> None:
    found = checkpoint.open(copied("w4a8_dynamic"))
    found.validate(expected(), tp=16)
    with pytest.raises(
        CheckpointError, match=re.escape(f"{GATE}: expected at most 16 devices for version 1.0.0 of W4A8, found tp 32")
    ):
        found.validate(expected(), tp=32)


@pytest.mark.parametrize(
    "way", [("w4a8_dynamic", None, "0", None), ("w8a8_dynamic",), ("w4a8_dynamic", "compressed-tensors")]
)
def test_other_forms_are_split_as_one_likes(way: tuple[Any, ...], copied: Callable[..., Path]) -> None:
    checkpoint.open(copied(*way)).validate(expected(), tp=32)


def test_a_module_that_is_not_there(copied: Callable[..., Path]) -> None:
    found = checkpoint.open(copied("w8a8"))
    for asked in (found.kind_of, found.form_of, found.tensors):
        with pytest.raises(CheckpointError, match=r"model\.layer\.0\.mlp: expected a module of this name, found none"):
            asked("model.layer.0.mlp")
