"""Every pattern that has a PyPTO kernel."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glmfuse.lowering.pypto.launch.attention import ATTENTION, PAGED_ATTENTION
from glmfuse.lowering.pypto.launch.gate_topk import GATE_TOPK
from glmfuse.lowering.pypto.launch.launch import PyptoKernel
from glmfuse.lowering.pypto.launch.linear import LINEAR
from glmfuse.lowering.pypto.launch.norm_dynamic_quantize import NORM_DYNAMIC_QUANTIZE
from glmfuse.lowering.pypto.launch.norm_qkv_rope import NORM_QKV_ROPE
from glmfuse.lowering.pypto.launch.norm_qkv_rope_quant import NORM_QKV_ROPE_QUANT
from glmfuse.lowering.pypto.launch.quant_linear import QUANT_LINEAR
from glmfuse.lowering.pypto.launch.quantize import QUANTIZE
from glmfuse.lowering.pypto.launch.rms_norm import ADD_RMS_NORM, RMS_NORM
from glmfuse.lowering.pypto.launch.rotary import ROTARY
from glmfuse.lowering.pypto.launch.route_topk import ROUTE_TOPK
from glmfuse.lowering.pypto.launch.router_mlp_quant import ROUTER_MLP_QUANT
from glmfuse.lowering.pypto.launch.swiglu import SWIGLU
from glmfuse.lowering.pypto.launch.swiglu_mlp import SWIGLU_MLP
from glmfuse.lowering.pypto.launch.swiglu_mlp_quant import SWIGLU_MLP_QUANT
from glmfuse.lowering.pypto.launch.swiglu_mlp_w4 import SWIGLU_MLP_W4

KERNELS: Mapping[str, PyptoKernel] = MappingProxyType(
    {
        "linear": LINEAR,
        "rms_norm": RMS_NORM,
        "add_rms_norm": ADD_RMS_NORM,
        "rotary": ROTARY,
        "swiglu": SWIGLU,
        "route_topk": ROUTE_TOPK,
        "norm_qkv_rope": NORM_QKV_ROPE,
        "gate_topk": GATE_TOPK,
        "swiglu_mlp": SWIGLU_MLP,
        "attention": ATTENTION,
        "paged_attention": PAGED_ATTENTION,
        "quantize": QUANTIZE,
        "dynamic_quantize": QUANTIZE,
        "quant_linear": QUANT_LINEAR,
        "norm_qkv_rope_w8a8": NORM_QKV_ROPE_QUANT,
        "norm_qkv_rope_w8a8_dynamic": NORM_QKV_ROPE_QUANT,
        "norm_qkv_rope_fp8_per_token": NORM_QKV_ROPE_QUANT,
        "norm_dynamic_quantize": NORM_DYNAMIC_QUANTIZE,
        "quant_mlp_w8a8_dynamic": SWIGLU_MLP_QUANT,
        "quant_mlp_fp8_per_token": SWIGLU_MLP_QUANT,
        "quant_mlp_w4a8_dynamic": SWIGLU_MLP_W4,
        "swiglu_mlp_w8a8_dynamic": SWIGLU_MLP_QUANT,
        "swiglu_mlp_fp8_per_token": SWIGLU_MLP_QUANT,
        "swiglu_mlp_w4a8_dynamic": SWIGLU_MLP_W4,
        "router_quant_mlp_w8a8_dynamic": ROUTER_MLP_QUANT,
        "router_quant_mlp_fp8_per_token": ROUTER_MLP_QUANT,
        "router_mlp_w8a8_dynamic": ROUTER_MLP_QUANT,
        "router_mlp_fp8_per_token": ROUTER_MLP_QUANT,
    }
)
