"""Offsets beside scales: ModelSlim writes them where they are zeros, and no kernel takes others."""

from __future__ import annotations

from torch import nn

from glmfuse.errors import CheckpointError, Problem


def drop_zero_offsets(module: nn.Module, name: str) -> None:
    """Forget the offsets of the layer's weights. CheckpointError for one that is not zero: an asymmetric layer."""
    offsets = [(key, value) for key, value in module.named_parameters(recurse=False) if "_offset" in key]
    problems = [
        Problem(f"{name}.{key}", "zeros, since the weights of its type are symmetric", f"{int(count)} other numbers")
        for key, value in offsets
        if key != "input_offset" and (count := value.count_nonzero())
    ]
    if problems:
        raise CheckpointError("the checkpoint has asymmetric weights", problems)
    for key, _ in offsets:
        if key != "input_offset":
            delattr(module, key)
