"""A model without weights, held against a checkpoint, its layers replaced by those of their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import nn

from glmfuse.errors import CheckpointError, Problem
from glmfuse.quantization.checkpoint import Checkpoint
from glmfuse.quantization.modules.experts import ExpertSizes, QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.modules.registry import EXPERTS, LINEARS
from glmfuse.quantization.modules.w8a8 import share_inputs
from glmfuse.quantization.schemes import FLOAT, W8A8, Form, Kind

Names = Callable[[str], str]
"""A module's name in the checkpoint, by that in the model; an empty one where the checkpoint need not have it."""

_OF_EXPERT = ("gate_proj", "up_proj", "down_proj")


def own_name(name: str) -> str:
    """The checkpoint calls it as the model does."""
    return name


def weights_of(model: nn.Module, name_of: Names = own_name) -> dict[str, tuple[int, ...]]:
    """The shape of every module's weight as a checkpoint has it, experts one by one, by names in the checkpoint."""
    tied = {name.rpartition(".")[0] for name in getattr(model, "all_tied_weights_keys", ())}
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if name in tied or not (called := name_of(name)):
            continue
        if is_experts(module):
            found |= _weights_of_experts(called, sizes_of(module))
        elif isinstance(weight := module._parameters.get("weight"), nn.Parameter):
            found[called] = tuple(weight.shape)
    return found


def unlike_tensors(model: nn.Module, checkpoint: Checkpoint, name_of: Names = own_name) -> Iterator[Problem]:
    """What `Checkpoint.validate` does not ask for: biases that the model adds or does not, buffers that it has read."""
    for name, module in model.named_modules():
        held = checkpoint.modules.get(name_of(name))
        if held is None or is_experts(module):
            continue
        kind = checkpoint.kind_of(name_of(name))
        folded = {"bias"} if kind is W8A8 else set()
        own = {key for key in module.state_dict() if "." not in key} - folded
        for key in sorted(own - held.keys()):
            yield Problem(name_of(name), f"a {key}, which the model reads", ", ".join(held))
        if "bias" in held.keys() - own - folded:
            yield Problem(name_of(name), "no bias, since the model adds none", "bias")


def replace_layers(model: nn.Module, checkpoint: Checkpoint, name_of: Names = own_name) -> None:
    """Put the module of its kind in the place of every layer that the checkpoint has quantised.

    Raises:
        CheckpointError: experts of one layer are of several kinds, or of one that experts cannot have.
    """
    problems: list[Problem] = []
    for name, module in list(model.named_modules()):
        called = name_of(name)
        if is_experts(module):
            kind, form = _kind_of_experts(called, checkpoint, sizes_of(module).experts, problems)
            if kind.name in EXPERTS:
                dtype = module.get_parameter("down_proj").dtype
                model.set_submodule(name, EXPERTS[kind.name](called, sizes_of(module), form, dtype))
        elif isinstance(module, nn.Linear) and called in checkpoint.described.kinds:
            made = LINEARS[checkpoint.kind_of(called).name]
            sizes, form = checkpoint.linear_of(called), checkpoint.form_of(called)
            model.set_submodule(name, made(called, sizes, form, module.weight.dtype))
    if problems:
        raise CheckpointError(str(checkpoint.folder), problems)


def after_loading(model: nn.Module) -> None:
    """Once its weights are there: what every quantised layer makes of them, and one tensor for equal scales."""
    for module in model.modules():
        if isinstance(module, (QuantizedLinear, QuantizedExperts)):
            module.after_loading()
            module.requires_grad_(False)
    share_inputs(model)


def is_experts(module: nn.Module) -> bool:
    """Whether it holds the float weights of all experts of a layer, as transformers does since 5.0."""
    held = module._parameters
    return all(isinstance(held.get(name), nn.Parameter) for name in ("gate_up_proj", "down_proj"))


def sizes_of(experts: nn.Module) -> ExpertSizes:
    """Read from down_proj [experts, hidden, width]."""
    return ExpertSizes(*experts.get_parameter("down_proj").shape)


def _weights_of_experts(name: str, sizes: ExpertSizes) -> Mapping[str, tuple[int, ...]]:
    linears = {projection: sizes.linear(projection) for projection in _OF_EXPERT}
    return {
        f"{name}.{expert}.{projection}": (linear.outputs, linear.inputs)
        for expert in range(sizes.experts)
        for projection, linear in linears.items()
    }


def _kind_of_experts(name: str, checkpoint: Checkpoint, experts: int, problems: list[Problem]) -> tuple[Kind, Form]:
    """The kind and form of all experts; where they are not of one, a problem."""
    layers = [f"{name}.{expert}.{projection}" for expert in range(experts) for projection in _OF_EXPERT]
    found = {(checkpoint.kind_of(layer).name, checkpoint.form_of(layer)): layer for layer in layers}
    kinds = sorted({kind for kind, _ in found})
    first = layers[0]
    if len(found) > 1:
        problems.append(Problem(name, "one type and form for all experts", ", ".join(kinds)))
    elif kinds[0] not in (*EXPERTS, FLOAT.name):
        problems.append(Problem(name, f"experts of {', '.join(EXPERTS)} or {FLOAT.name}", kinds[0]))
    return checkpoint.kind_of(first), checkpoint.form_of(first)
