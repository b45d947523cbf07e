"""Static scales: what the layers of transformers' model are given, one layer in memory at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glmfuse import huggingface
from glmfuse.patterns.quantize import quantize
from glmfuse.quantization.calibration import Calibration
from glmfuse.quantization.inventory import parts
from glmfuse.quantization.rounding import Inputs
from glmfuse.quantization.schemes import scheme
from glmfuse.quantization.source import drawn
from tests.support.checkpoints import CONFIG, LAYERS, written

PROJECTIONS = [f"model.layers.{n}.self_attn.{name}_proj" for n in range(LAYERS + 1) for name in "qkvo"]


def config_of(dtype: str = "float32") -> Any:
    return huggingface.make_config({**CONFIG, "dtype": dtype})


def whole_model(folder: Path) -> Any:
    """transformers' model of the weights that seed 0 draws."""
    read = drawn(0)
    weights = {weight.name: read(weight) for part in parts(config_of(), 0) for weight in part.weights}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config_of().save_pretrained(folder)
    return huggingface.require_transformers().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_ranges_are_those_of_the_whole_model(tmp_path: Path) -> None:
    """Layer by layer or at once, a projection is given the same numbers."""
    calibration = Calibration(config_of(), scheme("w8a8"), drawn(0), torch.float32, seed=3)
    found: dict[str, Inputs] = {}
    for part in parts(config_of(), 0):
        found |= calibration.through(part)
    model, given = whole_model(tmp_path), {}
    for name, module in model.named_modules():
        if name in PROJECTIONS:
            module.register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0]}))
    tokens = torch.randint(0, CONFIG["vocab_size"], (2, 64), generator=torch.Generator().manual_seed(3))
    model(tokens)
    assert found.keys() == given.keys()
    for name, inputs in found.items():
        wanted = Inputs.between(given[name].min().item(), given[name].max().item(), torch.float32)
        torch.testing.assert_close(inputs.scale, wanted.scale, rtol=1e-5, atol=0)
        assert (inputs.offset - wanted.offset).abs() <= 1, "a rounding in another order"


def test_int8_is_used_well(tmp_path: Path) -> None:
    """The inputs of every projection take most of the codes, and reach both ends."""
    calibration = Calibration(config_of("bfloat16"), scheme("w8a8"), drawn(0), torch.bfloat16, seed=0)
    seen: dict[str, torch.Tensor] = {}
    build = calibration._built

    def watched(part: Any) -> Any:
        layer = build(part)
        for name, module in layer.named_modules():
            full = f"model.layers.{part.layer}.{name}"
            if full in PROJECTIONS:
                module.register_forward_pre_hook(lambda _, args, full=full: seen.update({full: args[0]}))
        return layer

    calibration._built = watched
    found = {name: value for part in parts(config_of(), 1) for name, value in calibration.through(part).items()}
    assert sorted(found) == sorted(PROJECTIONS)
    for name, inputs in found.items():
        codes = quantize(seen[name], 1 / inputs.scale, inputs.offset, None, False)
        assert codes.unique().numel() > 100, name
        assert codes.max() - codes.min() >= 250, name


def test_projections_of_one_input_have_one_scale(tmp_path: Path) -> None:
    found = written(tmp_path / "out", "w8a8")
    scales = set()
    for layer in range(LAYERS + 1):
        q, k, v, o = (found.tensors(f"model.layers.{layer}.self_attn.{name}_proj") for name in "qkvo")
        for name in ("input_scale", "input_offset"):
            assert torch.equal(q[name], k[name])
            assert torch.equal(q[name], v[name])
        scales |= {q["input_scale"].item(), o["input_scale"].item()}
    assert len(scales) == 2 * (LAYERS + 1), "each input has its own"


MEMORY = """
import resource, sys
from pathlib import Path
from tests.support.checkpoints import CONFIG, write
small = {**CONFIG, "hidden_size": 256, "moe_intermediate_size": 256, "n_routed_experts": 24, "intermediate_size": 256}
def peak(layers):
    config = {**small, "num_hidden_layers": layers, "first_k_dense_replace": 0}
    write(Path(sys.argv[1]) / str(layers), "w8a8", config=config, mtp=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
few, many = peak(3), peak(13)
print(few, many, 10 * 24 * 3 * 256 * 256)
"""


@pytest.mark.slow
def test_a_layer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Ten layers more raise the peak by less than what their experts hold in int8.

    By something: oneDNN keeps a kernel for each number of tokens that an expert of the calibration was given.
    """
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    few, many, written = map(int, done.stdout.split()[-3:])
    assert many - few < written, (few, many, written)
