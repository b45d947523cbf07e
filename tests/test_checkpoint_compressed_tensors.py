"""The config of compressed-tensors: what is written is read by its own library, and only exact schemes are ours."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from glmfuse.errors import CheckpointError
from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint.compressed_tensors import is_read, read
from glmfuse.quantization.schemes import FP8_PER_TOKEN, W4A8_DYNAMIC, W8A8_DYNAMIC
from tests.support.checkpoints import describe, write, written

FP8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False,
                "group_size": None, "block_structure": None, "actorder": None, "observer": "minmax",
                "observer_kwargs": {},
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True,
                "group_size": None, "block_structure": None, "actorder": None, "observer": None, "observer_kwargs": {},
            },
            "output_activations": None,
        }
    },
    "ignore": ["lm_head", "re:.*mlp.gate$"],
    "kv_cache_scheme": None,
}  # fmt: skip
"""As llm-compressor writes FP8_DYNAMIC, with every field."""

OTHERS: dict[str, dict[str, Any]] = {
    "weights": {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "block", "dynamic": True, "group_size": 128,
        "block_structure": [128, 128], "actorder": "weight", "scale_dtype": "torch.uint8", "zp_dtype": "torch.int8",
        "of_a_later_version": 1,
    },
    "input_activations": {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "tensor", "dynamic": False, "group_size": 128,
        "block_structure": [1, 128], "actorder": "weight", "scale_dtype": "torch.uint8", "of_a_later_version": 1,
    },
}  # fmt: skip
CHANGES = [(part, field, value) for part, fields in OTHERS.items() for field, value in fields.items()]


def changed(part: str, field: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(FP8)
    config["config_groups"]["group_0"][part][field] = value
    return config


def test_the_scheme_is_recognised_by_all_its_fields() -> None:
    assert is_read(FP8)
    described = read(FP8, ["model.layers.0.mlp.up_proj", "lm_head", "model.layers.0.mlp.gate", "model.norm"])
    assert described.kinds == {"model.layers.0.mlp.up_proj": FP8_PER_TOKEN}


@pytest.mark.parametrize(("part", "field", "value"), CHANGES)
def test_a_field_that_differs_is_another_scheme(part: str, field: str, value: Any) -> None:
    config = changed(part, field, value)
    assert not is_read(config)
    with pytest.raises(CheckpointError, match=rf"group_0\.{part}\.{field}: expected .*'s .*, found .*") as caught:
        read(config, [])
    assert caught.value.problems[0].found == repr(value)


@pytest.mark.parametrize("part", ["weights", "input_activations"])
def test_a_group_without_a_part_is_another_scheme(part: str) -> None:
    config = copy.deepcopy(FP8)
    config["config_groups"]["group_0"][part] = None
    assert not is_read(config)
    config["config_groups"]["group_0"].pop(part)
    assert not is_read(config)


@pytest.mark.parametrize("part", ["weights", "input_activations"])
@pytest.mark.parametrize("field", ["observer", "observer_kwargs"])
def test_how_scales_were_found_does_not_matter(part: str, field: str) -> None:
    assert is_read(changed(part, field, "mse"))


def test_fields_at_their_defaults_may_be_absent() -> None:
    config = copy.deepcopy(FP8)
    for part in OTHERS:
        args = config["config_groups"]["group_0"][part]
        for field in ("group_size", "block_structure", "actorder", "symmetric", "observer", "observer_kwargs"):
            del args[field]
    assert is_read(config)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "pack-quantized"},
        {"format": None},
        {"quantization_status": "frozen"},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"transform_config": {"config_groups": {"R1": {}}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"config_groups": {}},
    ],
    ids=str,
)
def test_what_is_outside_the_groups_counts(change: dict[str, Any]) -> None:
    assert not is_read({**FP8, **change})


def test_one_strange_group_is_enough() -> None:
    config = changed("weights", "strategy", "block")
    config["config_groups"]["group_1"] = copy.deepcopy(FP8["config_groups"]["group_0"])
    assert not is_read(config)


def test_the_nearest_target_decides() -> None:
    """A layer's own name before a pattern, a pattern before the class, whichever group comes first."""
    group = FP8["config_groups"]["group_0"]
    whole, four = _args(8, "channel"), _args(4, "channel")
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    config = {
        **FP8,
        "config_groups": {
            "group_0": group,
            "group_1": {**group, "format": "int-quantized", "targets": [r"re:.*\.mlp\..*"], **four},
            "group_2": {**group, "format": "int-quantized", "targets": [down], **whole},
        },
    }
    found = read(config, [up, down, "model.layers.0.self_attn.q_proj"]).kinds
    assert found == {up: W4A8_DYNAMIC, down: W8A8_DYNAMIC, "model.layers.0.self_attn.q_proj": FP8_PER_TOKEN}


def _args(bits: int, strategy: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": strategy}
    return {
        "weights": weights,
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    }


WAYS = [("w8a8_dynamic",), ("w4a8_dynamic",), ("w4a8_dynamic", 16), ("fp8_per_token",)]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_its_own_library_reads_what_is_written(way: Any, tmp_path: Path) -> None:
    """compressed-tensors takes the config, and makes the same weights of codes and scales."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    found = written(tmp_path / "out", way[0], "compressed-tensors", None, *way[1:])
    config = quantization.QuantizationConfig.model_validate(found.config["quantization_config"])
    args = {target: group.weights for group in config.config_groups.values() for target in group.targets}
    count = 0
    for module in found.modules:
        if found.kind_of(module).name == "FLOAT":
            continue
        target = next(name for name in args if name == "Linear" or re.match(name.removeprefix("re:"), module))
        tensors = found.tensors(module)
        scale = tensors["weight_scale"]
        codes = tensors["weight"].to(torch.float32)
        wanted = (codes.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
        assert torch.equal(dequantize(tensors["weight"], scale, args=args[target], dtype=torch.float32), wanted), module
        count += 1
    assert count == 3 * 4 + 3 + 2 * (4 + 1) * 3


PRESETS = {"FP8_DYNAMIC": True, "W8A8": True, "W4A8": True, "FP8": False, "FP8_BLOCK": False, "W8A16": False,
           "W4A16": False, "W4A16_ASYM": False, "NVFP4": False, "MXFP8": False, "W4AFP8": False}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_its_presets(name: str) -> None:
    """Each as the library itself writes it down."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    group = quantization.preset_name_to_scheme(name, ["Linear"])
    format = "float-quantized" if "FP8" in name else "int-quantized"
    config = quantization.QuantizationConfig(config_groups={"group_0": group}, format=format)
    said = {**config.model_dump(mode="json"), "quantization_status": "compressed"}
    assert is_read(said) is PRESETS[name]


def test_a_checkpoint_that_contradicts_its_config(tmp_path: Path) -> None:
    """Every layer that was not ignored is one of the scheme's; a name less in the list is a layer more."""
    out = write(tmp_path / "out", "fp8_per_token")
    describe(out, lambda said: said["quantization_config"]["ignore"].remove("lm_head"), "config.json")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.open(out)
    assert {str(problem) for problem in caught.value.problems} == {
        "lm_head: expected FP8_PER_TOKEN: weight, weight_scale, found it lacks weight_scale",
        "lm_head.weight: expected float8_e4m3fn [256, 64], found bfloat16 [256, 64]",
    }


def test_a_quantised_layer_that_is_ignored(tmp_path: Path) -> None:
    out = write(tmp_path / "out", "fp8_per_token")
    describe(
        out, lambda said: said["quantization_config"]["ignore"].append("model.layers.0.mlp.up_proj"), "config.json"
    )
    with pytest.raises(
        CheckpointError, match=r"up_proj: expected FLOAT: a floating-point weight without scales, found"
    ):
        checkpoint.open(out)
