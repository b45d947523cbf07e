"""Writing to memory that the same operator reads elsewhere: torch_npu refuses some of it, and lets the rest pass.

torch_npu looks at addresses before it launches, as torch does, and lets views pass that are not dense. Those run here
in the CPU's order, which need not be a chip's, and are noted as races. Of dense views torch_npu lets `copy_` pass;
here it is refused like the others, as the CPU's is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.offline_ascend.standin.memory import on_npu

Overload = torch._ops.OpOverload


def race(overload: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call writes elements that it reads at another place.

    Raises:
        RuntimeError: torch_npu sees it too; in torch's words.
    """
    if not overload._schema.is_mutable:
        return False
    found = [pair for pair in _one_storage(overload, args, kwargs) if _meet(*pair)]
    if any(_dense(a) and _dense(b) for a, b in found):
        raise RuntimeError(
            f"{overload}: unsupported operation: some elements of the input tensor and the written-to tensor refer to "
            "a single memory location. Please clone() the tensor before performing the operation."
        )
    return bool(found)


def _one_storage(overload: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each written tensor with each other view of its storage; the same view is no other."""
    arguments = overload._schema.arguments
    named = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if on_npu(leaf)]
    for argument in arguments:
        if argument.is_write:
            for written in filter(on_npu, pytree.tree_leaves(named.get(argument.name))):
                yield from ((written, other) for other in tensors if _other_view(written, other))


def _other_view(a: Tensor, b: Tensor) -> bool:
    one = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return one and (a.storage_offset(), a.shape, a.stride()) != (b.storage_offset(), b.shape, b.stride())


def _dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(x)


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one storage have a byte in common."""
    (first, end), (start, last) = _span(a), _span(b)
    if end <= start or last <= first:
        return False
    return bool(torch.isin(_starts(a), _starts(b)).any()) if a.dtype == b.dtype else True


def _span(x: Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    start = x.storage_offset() * x.element_size()
    return start, start + (reach * x.element_size() if x.numel() else 0)


def _starts(x: Tensor) -> Tensor:
    """Where each element lies in its storage."""
    elements = torch.arange(x.untyped_storage().nbytes() // x.element_size())
    return elements.as_strided(x.shape, x.stride(), x.storage_offset()).flatten()
