"""A config, and weights or none, to a quantised checkpoint: a gigabyte of it in memory, or a layer that calibrates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmfuse.errors import ConfigError, OptionError, QuantizationError
from glmfuse.huggingface import make_config
from glmfuse.quantization import source
from glmfuse.quantization.calibration import Calibration
from glmfuse.quantization.checkpoint import compressed_tensors, modelslim
from glmfuse.quantization.checkpoint.described import by_module
from glmfuse.quantization.checkpoint.reading import open
from glmfuse.quantization.checkpoint.writing import Writer
from glmfuse.quantization.inventory import Part, parts, require_glm, shapes
from glmfuse.quantization.rounding import Inputs, quantized
from glmfuse.quantization.schemes import (
    COMPRESSED_TENSORS,
    FLOAT,
    W8A8,
    Form,
    Kind,
    Linear,
    Scheme,
    is_row_parallel,
    problems_of,
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to write. config: a config.json as a dictionary. weights: a folder, or None for random ones by the seed.

    mtp: whether with MTP layers; None where the weights have them, or the config of random ones does.
    """

    config: Mapping[str, Any]
    scheme: Scheme
    form: Form
    out: Path
    weights: Path | None = None
    seed: int = 0
    mtp: bool | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What was written. layers: how many linear layers of each type. bytes: of all tensors."""

    layers: Mapping[str, int]
    bytes: int
    mtp_layers: int


def quantize(job: Job, step: Callable[[str, int], None] = lambda name, total: None) -> Written:
    """Write the checkpoint and hold it against the model's shapes; step is told each part and how many there are.

    QuantizationError: layers that the scheme cannot hold, or weights that do not fit. ConfigError: another model, or a
    folder that is not empty.
    """
    config = make_config(dict(job.config))
    require_glm(config)
    mtp_layers = _mtp_layers(job, config)
    todo = parts(config, mtp_layers)
    _require_possible(job, todo)
    read = _source(job, todo, config)
    dtype = _dtype(job.config)
    writer, kinds = Writer(job.out), dict[str, Kind]()
    calibration = Calibration(config, job.scheme, read, dtype, job.seed) if _is_static(job.scheme) else None
    for part in todo:
        step("outside the layers" if part.layer is None else f"layer {part.layer}", len(todo))
        inputs = calibration.through(part) if calibration is not None else {}
        for module, tensors in _quantized(job, part, read, inputs, dtype):
            named = {f"{module}.{name}": value for name, value in tensors.items()}
            writer.add(named)
            kinds |= dict.fromkeys(named, job.scheme.kind_of(module))
        writer.close()
    if job.weights is not None:
        writer.copy_from(job.weights)
    size = writer.finish(*_documents(job, kinds, mtp_layers))
    open(job.out).validate(shapes(todo))
    layers = Counter(kind.name for name, kind in kinds.items() if name.endswith("_proj.weight"))
    return Written(layers, size, mtp_layers)


def form(scheme: Scheme, format: str | None, version: str | None, group_size: int | None) -> Form:
    """How a scheme is written; None for what it is by default. OptionError: the scheme is not written so."""
    chosen = format or scheme.formats[0]
    if chosen not in scheme.formats:
        raise OptionError(f"scheme {scheme.name!r} is written as {' or '.join(scheme.formats)}, not as {chosen}")
    if scheme.name != "w4a8_dynamic" and (version or group_size):
        raise OptionError(f"scheme {scheme.name!r} has no int4: leave out --w4a8-version and --group-size")
    if chosen == COMPRESSED_TENSORS and version:
        raise OptionError("compressed-tensors holds one int4 in an int8: leave out --w4a8-version")
    default = "0" if chosen == COMPRESSED_TENSORS else "1.0.0"
    return Form(chosen, version or default, group_size or 0)


def _quantized(
    job: Job, part: Part, read: source.Source, inputs: Mapping[str, Inputs], dtype: torch.dtype
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The modules of a part with the tensors that they hold, one after another."""
    weights = {weight.name: weight for weight in part.weights}
    for module, names in by_module(weights).items():
        kind = job.scheme.kind_of(module)
        held = {name: weights[f"{module}.{name}"] for name in names}
        values = {name: read(weight) for name, weight in held.items()}
        kept = {name: torch.float32 if weight.in_fp32 else dtype for name, weight in held.items()}
        if kind is FLOAT:
            yield module, {name: value.to(kept[name]) for name, value in values.items()}
        else:
            bias = values["bias"].to(dtype) if "bias" in values else None
            yield module, quantized(module, kind, job.form, values["weight"], bias, inputs.get(module))


def _documents(job: Job, kinds: Mapping[str, Kind], mtp_layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and what lies beside it by file names."""
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        **job.config,
        "dtype": str(_dtype(job.config)).removeprefix("torch."),
        "num_nextn_predict_layers": mtp_layers,
    }
    config.pop("torch_dtype", None)
    if job.form.format == COMPRESSED_TENSORS:
        said = compressed_tensors.describe(_targets(job.scheme), _left(kinds), job.form.group_size)
        return {**config, "quantization_config": said}, {}
    said = {"quant_method": "ascend", "scheme": job.scheme.name, "version": job.form.version}
    types = {name: kind.name for name, kind in kinds.items()}
    described = modelslim.describe(types, job.form, job.scheme.name.upper())
    return {**config, "quantization_config": said}, {modelslim.FILE: described}


def _targets(scheme: Scheme) -> dict[Kind, list[str]]:
    if scheme.attention is scheme.mlp:
        return {scheme.mlp: ["Linear"]}
    return {scheme.attention: [r"re:.*\.self_attn\.[qkvo]_proj$"], scheme.mlp: [r"re:.*\.(gate|up|down)_proj$"]}


def _left(kinds: Mapping[str, Kind]) -> list[str]:
    """The linear layers, in the sense of the format, that are not quantised."""
    ends = (".gate.weight", "lm_head.weight", ".eh_proj.weight", ".shared_head.head.weight")
    return [name.removesuffix(".weight") for name, kind in kinds.items() if kind is FLOAT and name.endswith(ends)]


def _require_possible(job: Job, todo: Iterable[Part]) -> None:
    problems = [
        problem
        for module, shape in shapes(list(todo)).items()
        if len(shape) == 2
        for problem in problems_of(
            module, job.scheme.kind_of(module), Linear(*shape, is_row_parallel(module)), job.form
        )
    ]
    if problems:
        raise QuantizationError(f"scheme {job.scheme.name}", problems)


def _mtp_layers(job: Job, config: Any) -> int:
    if job.mtp is False:
        return 0
    if job.weights is not None and job.mtp is None:
        return source.mtp_layers(job.weights, config.num_hidden_layers)
    return config.num_mtp_layers or (1 if job.mtp else 0)


def _source(job: Job, todo: Iterable[Part], config: Any) -> source.Source:
    if job.weights is None:
        return source.drawn(job.seed)
    return source.given(job.weights, todo, config.num_hidden_layers)


def _is_static(scheme: Scheme) -> bool:
    return W8A8 in (scheme.attention, scheme.mlp)


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The model's dtype; bf16 where the config names none."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if name not in ("bfloat16", "float16", "float32"):
        raise ConfigError(f"dtype {name!r} of the config is none that is quantised: bfloat16, float16, float32")
    return getattr(torch, name)
