"""The target `aten`: kernels for any engine, equal to their patterns but for the order of sums."""

from __future__ import annotations

from torch import fx

from glmfuse.lowering.aten.attention import ATTENTION, EAGER_ATTENTION
from glmfuse.lowering.aten.cache_update import CACHE_UPDATE
from glmfuse.lowering.target import Kernel, Target
from glmfuse.matching.check import Site


def _traced(kernel: Kernel, site: Site) -> fx.GraphModule | str:
    return site.trace.of(kernel.fn)


_KERNELS = {"attention": ATTENTION, "eager_attention": EAGER_ATTENTION, "cache_update": CACHE_UPDATE}

ATEN = Target("aten", _KERNELS, inlined=_traced)
