"""What torch_npu refuses before it launches: writing to memory that the same operator reads elsewhere.

The CPU's kernels refuse it too. While a graph is captured they do not run, and Meta kernels know no addresses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.offline_ascend.standin.memory import on_npu


def check_overlap(overload: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call whose written arguments overlap others in part, in torch's words.

    Raises:
        RuntimeError: they do.
    """
    named = dict(zip((argument.name for argument in overload._schema.arguments), args, strict=False)) | kwargs
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if on_npu(leaf)]
    for argument in overload._schema.arguments:
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for written in filter(on_npu, pytree.tree_leaves(named.get(argument.name))):
            if any(_partly(written, other) for other in tensors):
                raise RuntimeError(
                    f"{overload}: unsupported operation: some elements of the input tensor and the written-to tensor "
                    "refer to a single memory location. Please clone() the tensor before performing the operation."
                )


def _partly(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors share some bytes and not all, as torch counts it."""
    if a is b or a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    if not (_dense(a) and _dense(b)):
        return False  # torch gives up here too
    (start, end), (other, last) = _bytes(a), _bytes(b)
    return start < last and other < end and (start, end) != (other, last)


def _dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(x)


def _bytes(x: Tensor) -> tuple[int, int]:
    start = x.storage_offset() * x.element_size()
    return start, start + x.numel() * x.element_size()
