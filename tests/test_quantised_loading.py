"""from_pretrained of quantised checkpoints: which modules come of it, and every way in which one is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import CompressedTensorsConfig

from glmfuse.errors import CheckpointError, ConfigError, QuantizationError
from glmfuse.quantization.config import AscendConfig
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.schemes import SCHEMES
from tests.support.checkpoints import describe, edit
from tests.support.quantised import CASES, LAYERS, copied, folder_of, load, quantised

Q, K = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")
GATE = "model.layers.0.mlp.gate_proj"
EXPERTS = "model.layers.1.mlp.experts"
MTP = f"model.layers.{LAYERS}"


def reconfigured(case: str, folder: Path, **fields: Any) -> Path:
    """A checkpoint whose config.json says something else of the model."""
    made = copied(case, folder)
    describe(made, lambda said: said.update(fields), "config.json")
    return made


def refused(folder: Path, *lines: str, error: type[Exception] = CheckpointError, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        load(folder, **kwargs)
    for line in lines:
        assert re.search(line, str(caught.value)), f"{line!r} is not in\n{caught.value}"
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_each_layer_is_the_module_of_its_kind(case: str) -> None:
    scheme = SCHEMES[CASES[case].scheme]
    linears = Counter(
        (name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj"), layer.kind)
        for name, layer in quantised(case).named_modules()
        if isinstance(layer, QuantizedLinear)
    )
    experts = [layer.kind for layer in quantised(case).modules() if isinstance(layer, QuantizedExperts)]
    assert linears == {(True, scheme.attention): 4 * LAYERS, (False, scheme.mlp): 3 * LAYERS}
    assert experts == [scheme.mlp] * (LAYERS - 1)
    left = [name for name, layer in quantised(case).named_modules() if type(layer) is torch.nn.Linear]
    assert left == ["lm_head"]
    assert not any(value.is_meta for value in (*quantised(case).parameters(), *quantised(case).buffers()))


def test_q_k_and_v_share_one_scale_of_their_input() -> None:
    for layer in quantised("w8a8").model.layers:
        attention = layer.self_attn
        for name in ("factor", "offset", "inverse"):
            q, k, v, o = (getattr(getattr(attention, f"{part}_proj"), name) for part in "qkvo")
            assert q is k is v
            assert o is not q


def test_unlike_scales_stay_apart(tmp_path: Path) -> None:
    folder = copied("w8a8", tmp_path)
    edit(folder, lambda tensors: tensors[f"{K}.input_scale"].mul_(2))
    attention = load(folder).model.layers[0].self_attn
    assert attention.q_proj.factor is attention.v_proj.factor
    assert not torch.equal(attention.k_proj.factor, attention.q_proj.factor)


def test_modelslims_own_folder_is_read_by_a_config_in_the_call(tmp_path: Path) -> None:
    """Published ones often have no quantization_config in config.json."""
    folder = copied("w8a8", tmp_path)
    describe(folder, lambda said: said.pop("quantization_config"), "config.json")
    ids = torch.randint(0, 256, (1, 5))
    assert torch.equal(load(folder, quantization_config=AscendConfig())(ids).logits, quantised("w8a8")(ids).logits)


def said(case: str) -> dict[str, Any]:
    return json.loads((folder_of(case) / "config.json").read_text())["quantization_config"]


OTHERS = {
    "one scale for all weights": ("weights", {"strategy": "tensor"}),
    "blocks": ("weights", {"strategy": "block", "block_structure": [128, 128]}),
    "asymmetric": ("weights", {"symmetric": False}),
    "static rows": ("input_activations", {"dynamic": False, "strategy": "tensor"}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_scheme_of_compressed_tensors_is_left_to_transformers(other: str) -> None:
    part, fields = OTHERS[other]
    mine, theirs = said("fp8_per_token"), said("fp8_per_token")
    (group,) = theirs["config_groups"].values()
    group[part].update(fields)
    assert type(AutoQuantizationConfig.from_dict(mine)) is AscendConfig
    assert type(AutoQuantizationConfig.from_dict(theirs)) is CompressedTensorsConfig


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_other_sizes_names_every_layer(case: str, tmp_path: Path) -> None:
    said = refused(reconfigured(case, tmp_path, moe_intermediate_size=48), rf"{EXPERTS}\.0\.gate_proj.*expected")
    assert len(re.findall("expected", said)) == 20
    assert "more" in said


@pytest.mark.parametrize("case", ["w8a8", "fp8_per_token"])
def test_layers_that_the_checkpoint_has_not(case: str, tmp_path: Path) -> None:
    folder = reconfigured(case, tmp_path, num_hidden_layers=LAYERS + 2)
    refused(folder, rf"model\.layers\.{LAYERS + 1}\.\S+: expected .*, found no such layer in the checkpoint")


@pytest.mark.parametrize("case", ["w8a8", "fp8_per_token"])
def test_layers_that_the_model_has_not(case: str, tmp_path: Path) -> None:
    folder = reconfigured(case, tmp_path, num_nextn_predict_layers=0)
    refused(folder, rf"{re.escape(MTP)}: expected layers 0 to {LAYERS - 1}, as the config says, found another one")


def without(*names: str) -> Any:
    return lambda held: [held.pop(name) for name in names] and None


def test_an_mtp_layer_that_is_not_whole_is_refused_with_the_model(tmp_path: Path) -> None:
    """At once, when the model is loaded: not when it first drafts."""
    gone = (f"{MTP}.enorm.weight", f"{MTP}.mlp.gate.e_score_correction_bias")
    folder = copied("w8a8", tmp_path)
    edit(folder, without(*gone), LAYERS)
    edit(folder, without(f"{Q}.deq_scale"))
    describe(folder, without(*gone, f"{Q}.deq_scale"))
    refused(folder, rf"{re.escape(Q)}: expected W8A8: .*, found it lacks deq_scale")
    folder = copied("w8a8", tmp_path / "second")
    edit(folder, without(*gone), LAYERS)
    edit(folder, without("model.layers.0.input_layernorm.weight"))
    describe(folder, without(*gone, "model.layers.0.input_layernorm.weight"))
    refused(
        folder,
        rf"{re.escape(MTP)}\.enorm: expected a weight \[64\], found no such layer",
        rf"{re.escape(MTP)}\.mlp\.gate: expected a e_score_correction_bias, which the model reads",
        r"model\.layers\.0\.input_layernorm: expected a weight \[64\], found no such layer",
    )


def test_scales_of_an_mtp_layer_are_part_of_the_same_error(tmp_path: Path) -> None:
    gone = f"{MTP}.mlp.experts.3.up_proj.weight_scale"
    folder = copied("fp8_per_token", tmp_path)
    edit(folder, without(gone), LAYERS)
    refused(folder, rf"{re.escape(MTP)}\.mlp\.experts\.3\.up_proj: expected FP8_PER_TOKEN.*lacks weight_scale")


def test_a_bias_that_the_model_adds_or_does_not(tmp_path: Path) -> None:
    folder = copied("fp8_per_token", tmp_path)
    edit(folder, without(f"{Q}.bias"))
    refused(folder, rf"{re.escape(Q)}: expected a bias, which the model reads, found weight, weight_scale")
    folder = reconfigured("w8a8_dynamic", tmp_path / "other", attention_bias=False)
    refused(folder, rf"{re.escape(Q)}: expected no bias, since the model adds none, found bias")


def as_float(folder: Path, layers: list[str]) -> None:
    """Turn int8 layers of layer 1 into float ones, in tensors and in the description."""

    def change(tensors: dict[str, Any]) -> None:
        for layer in layers:
            scale = tensors.pop(f"{layer}.weight_scale")
            tensors[f"{layer}.weight"] = (tensors[f"{layer}.weight"].float() * scale).to(torch.bfloat16)
            del tensors[f"{layer}.weight_offset"]

    def say(described: dict[str, Any]) -> None:
        for layer in layers:
            without(f"{layer}.weight_scale", f"{layer}.weight_offset")(described)
            described[f"{layer}.weight"] = "FLOAT"

    edit(folder, change, 1)
    describe(folder, say)


def test_experts_of_several_types_are_refused(tmp_path: Path) -> None:
    folder = copied("w8a8_dynamic", tmp_path)
    as_float(folder, [f"{EXPERTS}.2.up_proj"])
    refused(folder, rf"{re.escape(EXPERTS)}: expected one type and form for all experts, found FLOAT, W8A8_DYNAMIC")


def test_one_layer_may_be_float_beside_the_others(tmp_path: Path) -> None:
    folder = copied("w8a8_dynamic", tmp_path)
    shared = [f"model.layers.1.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")]
    each = [f"{EXPERTS}.{number}.{name}_proj" for number in range(8) for name in ("gate", "up", "down")]
    as_float(folder, [*shared, *each])
    model = load(folder)
    kinds = [isinstance(layer.mlp.experts, QuantizedExperts) for layer in model.model.layers[1:]]
    assert kinds == [False, True]
    ids = torch.randint(0, 256, (2, 9))
    found, expected = model(ids).logits.double(), quantised("w8a8_dynamic")(ids).logits.double()
    assert 0 < (found - expected).norm() / expected.norm() < 0.5


@pytest.mark.parametrize(
    ("case", "name", "value", "message"),
    [
        (
            "w8a8_dynamic",
            f"{GATE}.weight_offset",
            1.0,
            "zeros, since weights of its type are symmetric|symmetric weights",
        ),
        ("w8a8", f"{Q}.input_scale", 0.0, f"{re.escape(Q)}: expected a positive input_scale, found 0.0"),
        ("w8a8", f"{Q}.input_scale", float("nan"), f"{re.escape(Q)}: expected a positive input_scale, found nan"),
    ],
)
def test_values_that_no_call_fits(case: str, name: str, value: float, message: str, tmp_path: Path) -> None:
    folder = copied(case, tmp_path)
    edit(folder, lambda tensors: tensors[name][:1].fill_(value))
    refused(folder, message, error=QuantizationError)


def test_fp32_is_refused() -> None:
    refused(folder_of("w8a8"), "pass dtype=torch.bfloat16", error=ConfigError, dtype=torch.float32)


def test_fp16_is_taken() -> None:
    model = load(folder_of("w8a8_dynamic"), dtype=torch.float16)
    ids = torch.randint(0, 256, (1, 7))
    found = model(ids).logits
    assert found.dtype == torch.float16
    assert not found.isnan().any()


def test_a_model_without_files_is_refused() -> None:
    config = transformers.AutoConfig.from_pretrained(folder_of("w8a8"))
    with pytest.raises(ConfigError, match="from_pretrained"):
        type(quantised("w8a8")).from_pretrained(None, config=config, state_dict={})


def test_what_was_loaded_is_not_saved_as_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable|not support"):
        quantised("w8a8").save_pretrained(tmp_path / "again")
