"""Quantised checkpoints written, and read back: names, types, layers one at a time."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glmfuse import huggingface
from glmfuse.quantization import checkpoint
from glmfuse.quantization.checkpoint.headers import stored
from glmfuse.quantization.checkpoint.modelslim import FILE
from glmfuse.quantization.checkpoint.writing import Writer
from glmfuse.quantization.inventory import parts, shapes
from glmfuse.quantization.quantize import form
from glmfuse.quantization.rounding import quantized
from glmfuse.quantization.schemes import FLOAT, W8A8, scheme
from glmfuse.quantization.source import drawn
from tests.support.checkpoints import CONFIG, LAYERS, WAYS, describe, write, written

MTP = f"model.layers.{LAYERS}"


def inventory(mtp_layers: int = 1) -> list[Any]:
    return parts(huggingface.make_config(CONFIG), mtp_layers)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_layer_comes_back_as_it_was_rounded(way: Any, tmp_path: Path) -> None:
    found, read = written(tmp_path / "out", *way, seed=5), drawn(5)
    weights = {weight.name: weight for part in inventory() for weight in part.weights}
    chosen, laid_out = scheme(way[0]), form(scheme(way[0]), *way[1:])
    assert set(found.modules) == {name.rpartition(".")[0] for name in weights}
    for module in found.modules:
        tensors, kind = found.tensors(module), found.kind_of(module)
        assert kind is chosen.kind_of(module)
        if kind in (FLOAT, W8A8):
            continue
        values = {name: read(weights[f"{module}.{name}"]) for name in ("weight", "bias") if name in tensors}
        bias = values["bias"].to(torch.bfloat16) if "bias" in values else None
        wanted = quantized(module, kind, laid_out, values["weight"], bias, None)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name].float(), wanted[name].float()) for name in wanted), module


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_stays_as_it_was(way: Any, tmp_path: Path) -> None:
    found, read = written(tmp_path / "out", *way), drawn(0)
    count = 0
    for part in inventory():
        for weight in part.weights:
            module, _, name = weight.name.rpartition(".")
            if found.kind_of(module) is FLOAT:
                dtype = torch.float32 if weight.in_fp32 else torch.bfloat16
                assert torch.equal(found.tensors(module)[name], read(weight).to(dtype)), weight.name
                count += 1
    outside, of_layers, of_routers, of_mtp = 3, 4 * (LAYERS + 1), 2 * LAYERS, 6
    assert count == outside + of_layers + of_routers + of_mtp


TYPES = {
    "model.layers.0.self_attn.q_proj": ("W8A8", "W8A8_DYNAMIC", "W8A8_DYNAMIC", "FP8_PER_TOKEN"),
    "model.layers.1.self_attn.o_proj": ("W8A8", "W8A8_DYNAMIC", "W8A8_DYNAMIC", "FP8_PER_TOKEN"),
    "model.layers.0.mlp.down_proj": ("W8A8_DYNAMIC", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "FP8_PER_TOKEN"),
    "model.layers.1.mlp.experts.3.gate_proj": ("W8A8_DYNAMIC", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "FP8_PER_TOKEN"),
    "model.layers.1.mlp.shared_experts.up_proj": ("W8A8_DYNAMIC", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "FP8_PER_TOKEN"),
    f"{MTP}.mlp.experts.0.down_proj": ("W8A8_DYNAMIC", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "FP8_PER_TOKEN"),
    f"{MTP}.self_attn.k_proj": ("W8A8", "W8A8_DYNAMIC", "W8A8_DYNAMIC", "FP8_PER_TOKEN"),
    "model.layers.1.mlp.gate": ("FLOAT",) * 4,
    "model.layers.0.self_attn.q_norm": ("FLOAT",) * 4,
    "model.embed_tokens": ("FLOAT",) * 4,
    "lm_head": ("FLOAT",) * 4,
    f"{MTP}.eh_proj": ("FLOAT",) * 4,
    f"{MTP}.shared_head.head": ("FLOAT",) * 4,
}


@pytest.mark.parametrize("number", range(4))
def test_which_type_a_layer_has(number: int, tmp_path: Path) -> None:
    name = ("w8a8", "w8a8_dynamic", "w4a8_dynamic", "fp8_per_token")[number]
    found = written(tmp_path / "out", name)
    for module, types in TYPES.items():
        assert found.kind_of(module).name == types[number], module


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_sizes_are_those_of_the_model(way: Any, tmp_path: Path) -> None:
    found, expected = written(tmp_path / "out", *way), shapes(inventory())
    found.validate(expected)
    for module, shape in expected.items():
        if len(shape) == 2:
            linear = found.linear_of(module)
            assert (linear.outputs, linear.inputs) == shape
    assert found.config["num_nextn_predict_layers"] == 1


def test_the_description_has_every_tensor(tmp_path: Path) -> None:
    """As ModelSlim writes it: a type for each tensor, in the words of the format."""
    out = write(tmp_path / "out", "w4a8_dynamic", None, "1.0.0", 16)
    said = json.loads((out / FILE).read_text())
    held = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert {name for name in said if "." in name} == held
    assert (said["version"], said["group_size"], said["model_quant_type"]) == ("1.0.0", 16, "W4A8_DYNAMIC")
    assert said["model.layers.0.mlp.gate_proj.scale_bias"] == "W4A8_DYNAMIC"


def test_names_and_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    """transformers saves experts apart, as published checkpoints have them."""
    model = huggingface.build(huggingface.make_config(CONFIG), torch.bfloat16)
    model.save_pretrained(tmp_path)
    tensors = [item for file in tmp_path.glob("*.safetensors") for item in load_file(file).items()]
    saved = {name: tuple(value.shape) for name, value in tensors}
    assert {weight.name: weight.shape for part in inventory(0) for weight in part.weights} == saved


@pytest.mark.parametrize("change", [{"use_qk_norm": False}, {"attention_bias": False}, {"tie_word_embeddings": True}])
def test_models_without_some_tensors(change: dict[str, Any], tmp_path: Path) -> None:
    config = {**CONFIG, **change}
    model = huggingface.build(huggingface.make_config(config), torch.bfloat16)
    model.save_pretrained(tmp_path)
    saved = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert {weight.name for part in parts(huggingface.make_config(config), 0) for weight in part.weights} == saved
    written(tmp_path / "out", "w8a8", config=config)


def test_layers_are_read_when_asked_for(tmp_path: Path) -> None:
    """Opening reads headers alone: a byte of the data that changes later is in what is read then."""
    out = write(tmp_path / "out", "w8a8_dynamic")
    found = checkpoint.open(out)
    file = found.modules["model.layers.0.self_attn.q_proj"]["weight"].file
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    now = {name: value for module in found.modules for name, value in _full(module, found.tensors(module))}
    then = {name: value for path in out.glob("*.safetensors") for name, value in load_file(path).items()}
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


def _full(module: str, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{module}.{name}", value) for name, value in tensors.items()]


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    first, again, other = (written(tmp_path / str(n), "w8a8", seed=seed) for n, seed in enumerate((3, 3, 4)))
    module = f"{MTP}.self_attn.q_proj"
    assert all(torch.equal(value, again.tensors(module)[name]) for name, value in first.tensors(module).items())
    assert not torch.equal(first.tensors(module)["weight"], other.tensors(module)["weight"])


def test_mtp_shares_embedding_and_head(tmp_path: Path) -> None:
    found = written(tmp_path / "out", "w8a8")
    tied = written(tmp_path / "tied", "w8a8", config={**CONFIG, "tie_word_embeddings": True})
    embedding = tied.tensors("model.embed_tokens")["weight"]
    assert torch.equal(tied.tensors(f"{MTP}.shared_head.head")["weight"], embedding)
    for copy, of in ((f"{MTP}.embed_tokens", "model.embed_tokens"), (f"{MTP}.shared_head.head", "lm_head")):
        assert torch.equal(found.tensors(copy)["weight"], found.tensors(of)["weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_not_quantised_has_the_dtype_of_the_config(dtype: str, tmp_path: Path) -> None:
    found = written(tmp_path / "out", "w8a8", config={**CONFIG, "dtype": dtype})
    attention = found.tensors("model.layers.0.self_attn.q_proj")
    assert attention["input_scale"].dtype == getattr(torch, dtype)
    assert found.tensors("lm_head")["weight"].dtype == getattr(torch, dtype)
    assert found.tensors("model.layers.1.mlp.gate")["e_score_correction_bias"].dtype == torch.float32


def test_old_descriptions_do_not_say_how_many_share_a_scale(tmp_path: Path) -> None:
    """It is 256 then, and none share one where there are no second scales."""
    wide = {**CONFIG, "intermediate_size": 512, "moe_intermediate_size": 256, "hidden_size": 256}
    grouped = write(tmp_path / "grouped", "w4a8_dynamic", None, "0", 256, config=wide)
    whole = write(tmp_path / "whole", "w4a8_dynamic", None, "0", config=wide)
    for out, size in ((grouped, 256), (whole, 0)):
        describe(out, lambda said: said.pop("group_size") and None)
        assert checkpoint.open(out).form_of("model.layers.0.mlp.up_proj").group_size == size


def test_files_are_written_as_soon_as_they_are_full(tmp_path: Path) -> None:
    """Nothing of a written file is held, and the index has every tensor in its file."""
    writer, values = Writer(tmp_path, limit=300), {f"a.{n}": torch.randn(5, 5) for n in range(7)}
    kept = []
    for number, (name, value) in enumerate(values.items(), 1):
        copy = value.clone()
        kept.append(weakref.ref(copy))
        writer.add({name: copy})
        del copy
        assert sum(one() is not None for one in kept) == number % 3
    assert writer.finish({}, {}) == 7 * 100
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [len(load_file(file)) for file in files] == [3, 3, 1]
    found = stored(tmp_path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(load_file(found[name].file)[name], value)
