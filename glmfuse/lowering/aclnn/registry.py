"""Every pattern that is one of torch_npu's operators, or a few of them.

What is not here is left to its parts: a linear layer is torch_npu's own matmul, gate_topk is that and route_topk, and
the larger blocks are norms, products, rotary and attention. Merged weights make swiglu_mlp two products and swiglu.
npu_scatter_pa_kv_cache writes caches in blocks, for which there is no pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glmfuse.lowering.aclnn.attention import ATTENTION
from glmfuse.lowering.aclnn.cache_update import CACHE_UPDATE
from glmfuse.lowering.aclnn.eager_attention import EAGER_ATTENTION
from glmfuse.lowering.aclnn.grouped_mlp import GROUPED_MLP
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.moe import MOE
from glmfuse.lowering.aclnn.paged_attention import PAGED_ATTENTION
from glmfuse.lowering.aclnn.rms_norm import ADD_RMS_NORM, RMS_NORM
from glmfuse.lowering.aclnn.rotary import ROTARY
from glmfuse.lowering.aclnn.route_topk import ROUTE_TOPK
from glmfuse.lowering.aclnn.swiglu import SWIGLU

KERNELS: Mapping[str, AclnnKernel] = MappingProxyType(
    {
        "rms_norm": RMS_NORM,
        "add_rms_norm": ADD_RMS_NORM,
        "rotary": ROTARY,
        "swiglu": SWIGLU,
        "route_topk": ROUTE_TOPK,
        "attention": ATTENTION,
        "eager_attention": EAGER_ATTENTION,
        "paged_attention": PAGED_ATTENTION,
        "cache_update": CACHE_UPDATE,
        "grouped_mlp": GROUPED_MLP,
        "moe": MOE,
    }
)
