"""Every pattern that has a PyPTO kernel."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glmfuse.lowering.pypto.launch.attention import ATTENTION, PAGED_ATTENTION
from glmfuse.lowering.pypto.launch.gate_topk import GATE_TOPK
from glmfuse.lowering.pypto.launch.launch import PyptoKernel
from glmfuse.lowering.pypto.launch.norm_qkv_rope import NORM_QKV_ROPE
from glmfuse.lowering.pypto.launch.rms_norm import RMS_NORM
from glmfuse.lowering.pypto.launch.swiglu_mlp import SWIGLU_MLP

KERNELS: Mapping[str, PyptoKernel] = MappingProxyType(
    {
        "rms_norm": RMS_NORM,
        "norm_qkv_rope": NORM_QKV_ROPE,
        "gate_topk": GATE_TOPK,
        "swiglu_mlp": SWIGLU_MLP,
        "attention": ATTENTION,
        "paged_attention": PAGED_ATTENTION,
    }
)
