"""Rotary position embedding of the part of each head that turns.

Limits: op-plugin 517f2e7, docs/zh/custom_APIs/torch_npu/torch_npu-npu_rotary_mul.md, without jit_compile.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import prod
from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, Size, alike, at_most, first, stored
from glmfuse.matching.select import Gain, Request

_WIDTH: Final = 894
_HEADS: Final = 999

Axes = tuple[bool, ...]
"""Which axes before the last cos has; along the others it is one row for all."""

_HALVES: Final[Mapping[Axes, int]] = {
    (False, False, True): 2,
    (True, False, True): 2,
    (True, True, True): 2,
    (False, True, False): 1,
    (True, True, False): 1,
    (True, False, False): 0,
    (True, False): 0,
    (True, True): 0,
}
"""The axis of tokens: in BNSD, in BSND, in SBND, and in TND."""

_NEIGHBOURS: Final = frozenset({(False, False, True), (False, True, False), (True, False, False), (True, False)})
"""What the interleaved mode takes of these: one row for all sequences and heads."""


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turned in fp32 and rounded once; the pattern rounds both products and their sum.

    Heads that turn whole stay where they lie, as in the pattern; others are joined to what does not turn.
    """
    turned = cos.shape[-1]
    mode = "interleave" if interleaved else "half"
    if turned < x.shape[-1]:
        head = torch.ops.npu.npu_rotary_mul(x[..., :turned], cos, sin, mode)
        return torch.cat([head, x[..., turned:]], dim=-1)
    if x.dim() == 4 and x.stride(1) < x.stride(2):
        x, cos, sin = (tensor.transpose(1, 2) for tensor in (x, cos, sin))
        whole: Tensor = torch.ops.npu.npu_rotary_mul(x, cos, sin, mode)
        return whole.transpose(1, 2)
    whole = torch.ops.npu.npu_rotary_mul(x, cos, sin, mode)
    return whole


def _limits(request: Request) -> str | None:
    x, cos = request.tensors["x"], request.tensors["cos"]
    interleaved = request.scalars["interleaved"]
    axes = _axes(x.shape[:-1], cos.shape[:-1], interleaved)
    if axes is None:
        mode = "of neighbours" if interleaved else "of halves"
        return f"cos of shape {cos.shape} is no row for x of shape {x.shape} in its turn {mode}"
    others = [size for axis, size in enumerate(x.shape[:-1]) if axis != _HALVES[axes]]
    return first(
        (
            stored(x, FLOATS),
            alike(**request.tensors),
            at_most("the turned width", cos.shape[-1], _WIDTH),
            at_most("sequences or heads", _count(others, interleaved), _HEADS),
        )
    )


def _axes(x: tuple[Size, ...], cos: tuple[Size, ...], interleaved: bool) -> Axes | None:
    """The first of the operator's layouts that these sizes are."""
    for axes in itertools.product((False, True), repeat=len(x)):
        known = axes in _NEIGHBOURS if interleaved else axes in _HALVES
        if known and cos == tuple(size if has else 1 for size, has in zip(x, axes, strict=True)):
            return axes
    return None


def _count(sizes: list[Size], interleaved: bool) -> Size:
    """What is counted of sequences and heads: the larger, or in the interleaved mode their product."""
    numbers = [size for size in sizes if isinstance(size, int)]
    return prod(numbers) if interleaved else max(numbers, default=1)


def _gain(request: Request) -> Gain:
    """Turning, and joining the rest to it."""
    whole = request.tensors["x"].shape[-1] == request.tensors["cos"].shape[-1]
    return gain_of(request, launches=1 if whole else 2)


ROTARY = AclnnKernel(_rotary, ("npu_rotary_mul",), _limits, _gain)
