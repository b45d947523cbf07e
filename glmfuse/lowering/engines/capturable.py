"""What a capture of launches cannot hold: operators that read on the host what the graph is still to compute."""

from __future__ import annotations

from typing import Final

import torch
from torch import fx

from glmfuse.capture import nodes_in
from glmfuse.lowering.verify import COMPARE

_FORCED: Final = "engine_options={'force_eager': True}"

_GROUPED: Final = torch.ops.aten._grouped_mm.default
_ON_THE_HOST: Final = (
    "torch._grouped_mm has no kernel of torch_npu's, and the one for any device reads the groups' ends on the host, "
    f"where a capture has not computed them; use target 'aclnn', experts 'batched_mm', or {_FORCED}"
)


def not_capturable(module: fx.GraphModule) -> str | None:
    """Why a graph cannot be captured, with what to do, or None."""
    if any(node.target is _GROUPED for node in nodes_in(module)) and not _has_kernel("aten::_grouped_mm"):
        return _ON_THE_HOST
    return None


def compares(module: fx.GraphModule) -> bool:
    """Whether the graph is compiled with `verify`, which compares on the host."""
    return any(node.target is COMPARE for node in nodes_in(module))


def _has_kernel(op: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op, "PrivateUse1"))
