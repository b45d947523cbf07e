"""The target `aclnn`: torch_npu's fused operators, put into the graph as they are called by hand."""

from __future__ import annotations

from torch import fx

from glmfuse.lowering.aclnn.device import unavailable
from glmfuse.lowering.aclnn.kernel import kernel_of
from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.check import Site


def _traced(kernel: Kernel, site: Site) -> fx.GraphModule | str:
    return site.trace.of(kernel.fn)


ACLNN = Target(
    "aclnn",
    {name: kernel_of(kernel) for name, kernel in KERNELS.items()},
    unavailable=unavailable,
    inlined=_traced,
)
