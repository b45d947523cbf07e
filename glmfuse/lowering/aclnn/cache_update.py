"""New rows of a cache, written in place by the operator that both engines of torch_npu have.

`index_copy_` would do for npugraph_ex; torchair has no converter for it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import FLOATS, alike, first, stored
from glmfuse.lowering.aten.gain import size
from glmfuse.matching.select import Gain, Request

OPS: Final = ("npu_scatter_nd_update_",)


def _cache_update(cache: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """The cache comes first in the call: npugraph_ex finds the inputs that a graph writes by that."""
    axes = [torch.arange(count, device=cache.device) for count in cache.shape[:2]]
    places = torch.stack(torch.meshgrid(*axes, positions, indexing="ij"), dim=-1)
    written: Tensor = torch.ops.npu.npu_scatter_nd_update_(cache, places, rows)
    return written


def _limits(request: Request) -> str | None:
    cache, rows = request.tensors["cache"], request.tensors["rows"]
    return first((stored(cache, FLOATS), alike(cache=cache, rows=rows)))


def _gain(request: Request) -> Gain:
    """Rows read and written, against the cache copied to be changed, and back; places are made once for all caches."""
    rows, cache = size(request.tensors["rows"]), size(request.tensors["cache"])
    return gain_of(request, 1, 2.0 * rows, 4.0 * cache + 2.0 * rows)


CACHE_UPDATE = AclnnKernel(_cache_update, OPS, _limits, _gain, rounds_alike=True, overwrites=True)
