"""`glmfuse quantize` as a user calls it: what it writes, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glmfuse import huggingface
from glmfuse.cli.main import main
from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint.reading import Checkpoint
from tests.support.checkpoints import CONFIG, LAYERS
from tests.support.mtp import mtp_of

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
MTP = f"model.layers.{LAYERS}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def quantize(config: Path, scheme: str, *arguments: str) -> Checkpoint:
    out = config.parent / "out"
    command = ["quantize", "--config", str(config), "--scheme", scheme, "--out", str(out), *arguments]
    assert main(command) == 0
    return checkpoint.open(out)


def refused(config: Path, scheme: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    out = config.parent / "out"
    before = set(out.iterdir()) if out.exists() else None
    assert main(["quantize", "--config", str(config), "--scheme", scheme, "--out", str(out), *arguments]) == 1
    assert (set(out.iterdir()) if out.exists() else None) == before, "nothing is written"
    return capsys.readouterr().err.splitlines()


def test_it_says_what_it_wrote_and_nothing_else(config: Path) -> None:
    command = ["quantize", "--config", str(config), "--scheme", "w8a8", "--out", str(config.parent / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "glmfuse.cli", *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == (
        f"{config.parent / 'out'}: w8a8 as modelslim, 1 MTP layers; linear layers: 1 FLOAT, 12 W8A8, 33 W8A8_DYNAMIC"
    )
    assert second.endswith("weights drawn by seed 0")
    for noise in ("Warning", "warn", "Traceback", "deprecated", "Failed to load"):
        assert noise not in done.stderr


def test_transformers_reads_the_config(config: Path) -> None:
    import transformers

    found = quantize(config, "w8a8")
    read = transformers.AutoConfig.from_pretrained(found.folder)
    assert (read.hidden_size, read.num_mtp_layers, read.dtype) == (CONFIG["hidden_size"], 1, torch.bfloat16)
    assert read.quantization_config == {"quant_method": "ascend", "scheme": "w8a8", "version": "1.0.0"}


@pytest.mark.parametrize(("flags", "layers"), [((), 1), (("--no-mtp",), 0), (("--mtp",), 1)])
def test_mtp_layers_are_asked_for(flags: tuple[str, ...], layers: int, config: Path) -> None:
    found = quantize(config, "w8a8_dynamic", *flags)
    assert found.config["num_nextn_predict_layers"] == layers
    assert any(module.startswith(f"{MTP}.") for module in found.modules) is (layers == 1)


def test_mtp_for_a_config_without(config: Path) -> None:
    config.write_text(json.dumps({**CONFIG, "num_nextn_predict_layers": 0}))
    assert f"{MTP}.eh_proj" in quantize(config, "w8a8_dynamic", "--mtp").modules


def test_several_mtp_layers(config: Path) -> None:
    config.write_text(json.dumps({**CONFIG, "num_nextn_predict_layers": 2}))
    found = quantize(config, "w8a8")
    assert {f"model.layers.{LAYERS + n}.self_attn.q_proj" for n in range(2)} <= found.modules.keys()


@pytest.mark.parametrize("way", [("--w4a8-version", "0"), ("--group-size", "32"), ("--format", "compressed-tensors")])
def test_forms_of_int4(way: tuple[str, str], config: Path) -> None:
    form = quantize(config, "w4a8_dynamic", *way).form_of(UP)
    assert (form.format, form.version, form.group_size) == {
        "--w4a8-version": ("modelslim", "0", 0),
        "--group-size": ("modelslim", "1.0.0", 32),
        "--format": ("compressed-tensors", "0", 0),
    }[way[0]]


def saved(folder: Path, with_mtp: bool = False, **change: Any) -> dict[str, Tensor]:
    """A floating-point checkpoint by transformers, and its tensors."""
    model = huggingface.build(huggingface.make_config({**CONFIG, **change}), torch.bfloat16, seed=7)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if with_mtp:
        tensors |= _of_mtp(model)
        save_file(tensors, file)
    return tensors


def _of_mtp(model: Any) -> dict[str, Tensor]:
    """An MTP layer as it is published: experts apart, embedding and head left out, which it shares."""
    found = {}
    for name, value in mtp_of(model).layers.state_dict().items():
        name = name.replace("0.", f"{MTP}.", 1).replace("mtp_block.", "").replace("post_norm", "shared_head.norm")
        if name.endswith("experts.gate_up_proj"):
            for expert, (gate, up) in enumerate(both.chunk(2) for both in value):
                found |= {name.replace("gate_up_proj", f"{expert}.gate_proj.weight"): gate.clone()}
                found |= {name.replace("gate_up_proj", f"{expert}.up_proj.weight"): up.clone()}
        elif name.endswith("experts.down_proj"):
            found |= {name.replace("down_proj", f"{n}.down_proj.weight"): down.clone() for n, down in enumerate(value)}
        else:
            found[name] = value.clone()
    return found


@pytest.mark.parametrize("with_mtp", [False, True])
def test_given_weights_are_those_that_are_quantised(with_mtp: bool, config: Path) -> None:
    """Codes times scales are within half a step of each weight, and what is left is left."""
    weights = saved(config.parent / "float", with_mtp)
    found = quantize(config, "w8a8_dynamic", "--weights", str(config.parent / "float"))
    assert found.config["num_nextn_predict_layers"] == int(with_mtp)
    for name, weight in weights.items():
        module, _, tensor = name.rpartition(".")
        held = found.tensors(module)
        if "weight_scale" in held and tensor == "weight":
            error = (held["weight"] * held["weight_scale"] - weight.float()).abs()
            assert (error <= held["weight_scale"] * 0.5001).all(), name
            assert error.max() > 0
        else:
            assert torch.equal(held[tensor], weight), name
    assert (found.folder / "generation_config.json").exists()
    if with_mtp:
        assert torch.equal(found.tensors(f"{MTP}.shared_head.head")["weight"], weights["lm_head.weight"])


def test_weights_that_do_not_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = saved(config.parent / "float")
    tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"][:5].clone()
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.int8)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.strange.weight"] = torch.randn(3)
    tensors["model.rotary_emb.inv_freq"] = torch.randn(3)
    save_file(tensors, config.parent / "float" / "model.safetensors")
    capsys.readouterr()  # transformers' bars
    lines = refused(config, "w8a8", "--weights", str(config.parent / "float"), capsys=capsys)
    assert set(lines[1:]) == {
        f"  {UP}.weight: expected a floating-point tensor [128, 64], found bfloat16 [5, 64]",
        f"  {Q}.weight: expected a floating-point tensor [128, 64], found int8 [128, 64]",
        "  model.norm.weight: expected a floating-point tensor [64], found none",
        "  model.layers.0.mlp.strange.weight: expected no such tensor in the model of this config, found float32 [3]",
    }


def test_mtp_of_weights_that_have_none(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(config.parent / "float")
    lines = refused(config, "w8a8", "--mtp", "--weights", str(config.parent / "float"), capsys=capsys)
    assert f"  {MTP}.eh_proj.weight: expected a floating-point tensor [64, 128], found none" in lines


REFUSED = {
    ("w8_a8",): "unknown quantization scheme: 'w8_a8'. Valid: fp8_per_token, w4a8_dynamic, w8a8, w8a8_dynamic. "
    "Did you mean 'w8a8'?",
    ("W4A8-dynamic",): "unknown quantization scheme: 'W4A8-dynamic'. Valid: fp8_per_token, w4a8_dynamic, w8a8, "
    "w8a8_dynamic. Did you mean 'w4a8_dynamic'?",
    ("gptq",): "unknown quantization scheme: 'gptq'. Valid: fp8_per_token, w4a8_dynamic, w8a8, w8a8_dynamic.",
    ("w8a8", "--format", "compressed-tensors"): "scheme 'w8a8' is written as modelslim, not as compressed-tensors",
    ("fp8_per_token", "--format", "modelslim"): "scheme 'fp8_per_token' is written as compressed-tensors, "
    "not as modelslim",
    ("w8a8", "--group-size", "32"): "scheme 'w8a8' has no int4: leave out --w4a8-version and --group-size",
    ("w8a8", "--w4a8-version", "0"): "scheme 'w8a8' has no int4: leave out --w4a8-version and --group-size",
    ("w4a8_dynamic", "--format", "compressed-tensors", "--w4a8-version", "0"): "compressed-tensors holds one int4 in "
    "an int8: leave out --w4a8-version",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_asked(arguments: tuple[str, ...], config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(config, *arguments, capsys=capsys) == [f"glmfuse: {REFUSED[arguments]}"]


@pytest.mark.parametrize("size", ["24", "-16"])
def test_a_group_size_that_does_not_divide(size: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(config, "w4a8_dynamic", "--group-size", size, capsys=capsys)
    assert lines[0] == "glmfuse: scheme w4a8_dynamic:"
    assert f"  {UP}: expected a group size that divides its 64 inputs, found {size}" in lines


def test_inputs_that_are_no_sixteen_shards(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(json.dumps({**CONFIG, "intermediate_size": 104}))
    assert refused(config, "w4a8_dynamic", capsys=capsys)[1:] == [
        "  model.layers.0.mlp.down_proj: expected inputs in 16 equal shards, found 104"
    ]


def test_a_folder_that_holds_something(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "out").mkdir()
    (config.parent / "out" / "kept").write_text("mine")
    assert "is not empty" in refused(config, "w8a8", capsys=capsys)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "glm4"}, "model_type 'glm4' cannot be quantised; 'glm4_moe' can"),
        ({"dtype": "float64"}, "dtype 'float64' of the config is none that is quantised"),
    ],
)
def test_configs_of_another_kind(
    change: dict[str, Any], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(json.dumps({**CONFIG, **change}))
    assert said in refused(config, "w8a8", capsys=capsys)[0]
