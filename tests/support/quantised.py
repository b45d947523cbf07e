"""Tiny quantised GLMs: written once for each scheme as `glmfuse quantize` writes them, and loaded as anyone would."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_map_only

import glmfuse.quantization  # noqa: F401
from glmfuse import huggingface
from glmfuse.quantization.checkpoint.writing import Writer
from glmfuse.quantization.inventory import parts
from glmfuse.quantization.quantize import Job, form, quantize
from glmfuse.quantization.schemes import scheme
from glmfuse.quantization.source import drawn

CONFIG = {**huggingface.TINY, "dtype": "bfloat16", "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
LAYERS, DENSE = 3, 1


@dataclass(frozen=True)
class Case:
    """A way to write a scheme, as `quantize` is told it."""

    scheme: str
    format: str | None = None
    version: str | None = None
    group_size: int | None = None


CASES = {
    "w8a8": Case("w8a8"),
    "w8a8_dynamic": Case("w8a8_dynamic"),
    "w8a8_dynamic, compressed-tensors": Case("w8a8_dynamic", "compressed-tensors"),
    "fp8_per_token": Case("fp8_per_token"),
    "w4a8_dynamic 1.0.0": Case("w4a8_dynamic"),
    "w4a8_dynamic 1.0.0 in groups": Case("w4a8_dynamic", group_size=16),
    "w4a8_dynamic 0 in groups": Case("w4a8_dynamic", version="0", group_size=16),
    "w4a8_dynamic 0": Case("w4a8_dynamic", version="0"),
    "w4a8_dynamic, compressed-tensors": Case("w4a8_dynamic", "compressed-tensors", group_size=16),
}
ONE_EACH = ("w8a8", "w8a8_dynamic", "fp8_per_token", "w4a8_dynamic 1.0.0 in groups")
"""A case of each scheme."""

SPARSE = LAYERS - DENSE
COUNTS = {
    scheme: {
        f"norm_qkv_rope_{attention}": LAYERS,
        f"swiglu_mlp_{mlp}": DENSE,
        f"moe_{mlp}": SPARSE,
        rows: LAYERS,
        product: LAYERS,
        "add_rms_norm": LAYERS + 1,
    }
    for scheme, attention, mlp, rows, product in (
        ("w8a8", "w8a8", "w8a8_dynamic", "quantize", "quant_linear"),
        ("w8a8_dynamic", "w8a8_dynamic", "w8a8_dynamic", "dynamic_quantize", "quant_linear"),
        ("fp8_per_token", "fp8_per_token", "fp8_per_token", "fp8_quantize", "fp8_linear"),
        ("w4a8_dynamic", "w8a8_dynamic", "w4a8_dynamic", "dynamic_quantize", "quant_linear"),
    )
}
"""Fused sites: every layer's front, MLP or experts; attention's output projection, whose rows are quantised before it;
the second norm of each layer, and the last one."""


def table() -> str:
    """COUNTS in Markdown, as docs/quantised.md has it."""
    sites = {name: ", ".join(f"{count} `{site}`" for site, count in counts.items()) for name, counts in COUNTS.items()}
    rows = ("| scheme | fused sites |", "| --- | --- |", *(f"| `{name}` | {fused} |" for name, fused in sites.items()))
    return "\n".join(rows)


LOGITS = {"w8a8": 0.12, "w8a8_dynamic": 0.1, "fp8_per_token": 0.35, "w4a8_dynamic": 0.6}
"""Relative L2 of logits beside the float model's, of the same experts: what rounding costs three layers of 64 channels.

Of a row whose largest number is 2.6 times its root mean square, codes to 127 are off by 2.6 / 127 / sqrt(12) or 0.6 %,
those to 7 by 11 %, and e4m3 by about 2^-4 / sqrt(3) / 1.4 or 2.6 %; static scales have to fit other rows too. Rows and
weights are both rounded, each layer has four products one behind the other, and the residuals carry what each adds:
measured, that is six times the error of one product in int8, five times in fp8, three times in int4, which only
experts and MLPs have. The bounds are twice that.
"""


@cache
def _made() -> Path:
    return Path(tempfile.mkdtemp(prefix="glmfuse-quantised-"))


@cache
def float_folder() -> Path:
    """The checkpoint in bf16 that all the cases are rounded from, MTP layer included."""
    folder, config = _made() / "float", huggingface.make_config(CONFIG)
    read, writer = drawn(0), Writer(folder)
    for part in parts(config, 1):
        dtypes = {weight: torch.float32 if weight.in_fp32 else torch.bfloat16 for weight in part.weights}
        writer.add({weight.name: read(weight).to(dtype) for weight, dtype in dtypes.items()})
    writer.finish({**CONFIG, "architectures": ["Glm4MoeForCausalLM"]}, {})
    return folder


@cache
def folder_of(case: str) -> Path:
    """The checkpoint of a case, with random weights and an MTP layer; not to be written to."""
    said = CASES[case]
    chosen = scheme(said.scheme)
    folder = _made() / case.replace(" ", "_")
    how = form(chosen, said.format, said.version, said.group_size)
    quantize(Job(CONFIG, chosen, how, folder))
    return folder


def copied(case: str, folder: Path) -> Path:
    """A copy of a checkpoint, to spoil."""
    return Path(shutil.copytree(folder_of(case), folder / "copy"))


def load(folder: Path, **kwargs: Any) -> Any:
    """As anyone loads a model."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs)


@cache
def quantised(case: str) -> Any:
    """The loaded model of a case; not to be changed."""
    return load(folder_of(case)).eval()


@cache
def in_float() -> Any:
    """The model that the cases are rounded from; not to be changed."""
    model = load(float_folder()).eval()
    model._keys_to_ignore_on_load_unexpected |= {rf"model\.layers\.{LAYERS}\..*"}
    return model


@contextmanager
def routed_as(model: Any, other: Any, **arguments: Any) -> Iterator[None]:
    """Inside, the routers of a model choose what those of the other do in this call.

    A router of random weights chooses among experts that are nearly as good: another one is another function, in
    bf16 beside fp32 already, and says nothing of how well a layer is rounded.
    """
    chosen: dict[str, Any] = {}
    gates = [(name, module) for name, module in model.named_modules() if name.endswith(".mlp.gate")]
    handles = [
        other.get_submodule(name).register_forward_hook(lambda _, __, made, name=name: chosen.update({name: made}))
        for name, _ in gates
    ]
    other(**arguments)

    def instead(name: str, given: tuple[Tensor, ...]) -> Any:
        return tree_map_only(Tensor, lambda value: value.to(given[0].device), chosen[name])

    handles += [gate.register_forward_hook(lambda _, x, __, name=name: instead(name, x)) for name, gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def far(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
