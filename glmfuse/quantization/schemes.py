"""Which type each linear layer of a scheme has, and the tensors that a layer of each type holds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from glmfuse.errors import OptionError, Problem

MODELSLIM = "modelslim"
COMPRESSED_TENSORS = "compressed-tensors"

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SCALES = (torch.float32, torch.bfloat16, torch.float16)
SHARDS = 16
"""Most shards of a row-parallel layer whose scale_bias was summed beforehand; vllm-ascend's w4a8.py."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a checkpoint writes its types down.

    format: of the files. version: of ModelSlim's W4A8, "1.0.0" with two int4 in a byte along the outputs, "0" with one
    in an int8. group_size: inputs that share a scale of W4A8; 0 is one scale for each output.
    """

    format: str = MODELSLIM
    version: str = "1.0.0"
    group_size: int = 0

    @property
    def is_packed(self) -> bool:
        """Whether a byte holds two int4, the even output in its low half."""
        return self.format == MODELSLIM and self.version == "1.0.0"


@dataclass(frozen=True, slots=True)
class Linear:
    """Sizes of a linear layer. row_parallel: its inputs are split among devices, as those of o_proj and down_proj."""

    outputs: int
    inputs: int
    row_parallel: bool = False
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of a layer. dtypes: those that are read; the first is what is written, FLOATS the model's own."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False

    def __str__(self) -> str:
        return f"{' or '.join(_word(dtype) for dtype in self.dtypes)} {list(self.shape)}"

    def takes(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Whether a tensor of this shape and dtype is such a one."""
        return shape == self.shape and dtype in self.dtypes


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of linear layer, by the name that ModelSlim's description gives it.

    holds: the tensors of a layer of these sizes, by the names that they have below the layer's.
    """

    name: str
    holds: Callable[[Linear, Form], dict[str, Held]]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bias(linear: Linear) -> dict[str, Held]:
    return {"bias": Held((linear.outputs,), FLOATS)} if linear.bias else {}


def _offset(linear: Linear, form: Form) -> dict[str, Held]:
    """ModelSlim writes an offset beside each scale, of zeros where the scale is symmetric."""
    return {"weight_offset": Held((linear.outputs, 1), SCALES)} if form.format == MODELSLIM else {}


def _float(linear: Linear, form: Form) -> dict[str, Held]:
    return {"weight": Held((linear.outputs, linear.inputs), FLOATS), **_bias(linear)}


def _w8a8(linear: Linear, form: Form) -> dict[str, Held]:
    """The bias is part of quant_bias; a checkpoint may keep it beside, where nothing reads it."""
    out = (linear.outputs,)
    return {
        "weight": Held((linear.outputs, linear.inputs), (torch.int8,)),
        "input_scale": Held((1,), FLOATS),
        "input_offset": Held((1,), (*FLOATS, torch.int8)),
        "quant_bias": Held(out, (torch.int32,)),
        "deq_scale": Held(out, (torch.float32,)),
        "weight_scale": Held((linear.outputs, 1), SCALES, optional=True),
        "weight_offset": Held((linear.outputs, 1), SCALES, optional=True),
        "bias": Held(out, FLOATS, optional=True),
    }


def _w8a8_dynamic(linear: Linear, form: Form) -> dict[str, Held]:
    return {
        "weight": Held((linear.outputs, linear.inputs), (torch.int8,)),
        "weight_scale": Held((linear.outputs, 1), SCALES),
        **_offset(linear, form),
        **_bias(linear),
    }


def _w4a8_dynamic(linear: Linear, form: Form) -> dict[str, Held]:
    rows = linear.outputs // 2 if form.is_packed else linear.outputs
    groups = linear.inputs // form.group_size if form.group_size else 1
    by_group = (linear.outputs, groups)
    held = {"weight": Held((rows, linear.inputs), (torch.int8,))}
    if form.format == COMPRESSED_TENSORS:
        return {**held, "weight_scale": Held(by_group, SCALES), **_bias(linear)}
    held |= {"weight_scale": Held((linear.outputs, 1), SCALES), **_offset(linear, form)}
    if form.group_size:
        held["weight_scale_second"] = Held(by_group, SCALES)
        held["weight_offset_second"] = Held(by_group, (*SCALES, torch.int64))
    if form.is_packed:
        held["scale_bias"] = Held((linear.outputs, SHARDS if linear.row_parallel else 1), (torch.float32,))
    return held | _bias(linear)


def _fp8_per_token(linear: Linear, form: Form) -> dict[str, Held]:
    return {
        "weight": Held((linear.outputs, linear.inputs), (torch.float8_e4m3fn,)),
        "weight_scale": Held((linear.outputs, 1), SCALES),
        **_bias(linear),
    }


FLOAT = Kind("FLOAT", _float)
W8A8 = Kind("W8A8", _w8a8)
W8A8_DYNAMIC = Kind("W8A8_DYNAMIC", _w8a8_dynamic)
W4A8_DYNAMIC = Kind("W4A8_DYNAMIC", _w4a8_dynamic)
FP8_PER_TOKEN = Kind("FP8_PER_TOKEN", _fp8_per_token)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (FLOAT, W8A8, W8A8_DYNAMIC, W4A8_DYNAMIC, FP8_PER_TOKEN)}


@dataclass(frozen=True, slots=True)
class Scheme:
    """What attention's projections are, what the layers of dense, shared and routed MLPs, and who can write it."""

    name: str
    attention: Kind
    mlp: Kind
    formats: tuple[str, ...]

    def kind_of(self, module: str) -> Kind:
        """The type of a linear layer, by its full name. Router, embeddings, head and eh_proj stay as they are."""
        owner, _, name = module.rpartition(".")
        if owner.endswith(".self_attn") and name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            return self.attention
        return self.mlp if ".mlp" in owner and name in ("gate_proj", "up_proj", "down_proj") else FLOAT


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("w8a8", W8A8, W8A8_DYNAMIC, (MODELSLIM,)),
        Scheme("w8a8_dynamic", W8A8_DYNAMIC, W8A8_DYNAMIC, (MODELSLIM, COMPRESSED_TENSORS)),
        Scheme("w4a8_dynamic", W8A8_DYNAMIC, W4A8_DYNAMIC, (MODELSLIM, COMPRESSED_TENSORS)),
        Scheme("fp8_per_token", FP8_PER_TOKEN, FP8_PER_TOKEN, (COMPRESSED_TENSORS,)),
    )
}


def scheme(name: str) -> Scheme:
    """The scheme of this name; OptionError names the nearest for a misspelt one."""
    if name in SCHEMES:
        return SCHEMES[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SCHEMES, n=1, cutoff=0.5)
    unknown = OptionError.unknown("quantization scheme", [name], SCHEMES)
    raise OptionError(f"{unknown} Did you mean {near[0]!r}?") if near else unknown


def is_row_parallel(module: str) -> bool:
    """Whether tensor parallelism splits a layer's inputs: attention's output projection and each MLP's second."""
    return module.endswith((".o_proj", ".down_proj"))


def problems_of(module: str, kind: Kind, linear: Linear, form: Form, tp: int = 1) -> list[Problem]:
    """Why a layer of these sizes cannot be of this type, or split among tp devices; empty where it can."""
    if kind is not W4A8_DYNAMIC:
        return []
    found = []
    if form.group_size < 0 or (form.group_size and linear.inputs % form.group_size):
        found.append(Problem(module, f"a group size that divides its {linear.inputs} inputs", str(form.group_size)))
    if form.is_packed:
        if linear.outputs % 2:
            found.append(Problem(module, "an even number of outputs, two to a byte", str(linear.outputs)))
        if linear.row_parallel and linear.inputs % SHARDS:
            found.append(Problem(module, f"inputs in {SHARDS} equal shards", str(linear.inputs)))
        if tp > SHARDS:
            found.append(Problem(module, f"at most {SHARDS} devices for version 1.0.0 of W4A8", f"tp {tp}"))
    return found
