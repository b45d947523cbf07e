"""Every pattern that glmfuse looks for; a pattern not in PATTERNS does not exist."""

from collections.abc import Mapping
from types import MappingProxyType

from glmfuse.matching.pattern import Pattern
from glmfuse.patterns.add_rms_norm import add_rms_norm
from glmfuse.patterns.attention import attention
from glmfuse.patterns.cache_update import cache_update
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.eager_attention import eager_attention
from glmfuse.patterns.fake_quantize import fake_quantize, fake_quantize_rows
from glmfuse.patterns.fp8_grouped_mlp import fp8_grouped_mlp
from glmfuse.patterns.fp8_linear import fp8_linear
from glmfuse.patterns.fp8_quantize import fp8_quantize
from glmfuse.patterns.gate_topk import gate_topk
from glmfuse.patterns.grouped_mlp import grouped_mlp
from glmfuse.patterns.linear import linear
from glmfuse.patterns.linear_add_rms_norm import linear_add_rms_norm
from glmfuse.patterns.moe import moe
from glmfuse.patterns.moe_per_token import MOE_PER_TOKEN
from glmfuse.patterns.mtp_head import mtp_head
from glmfuse.patterns.norm_dynamic_quantize import norm_dynamic_quantize
from glmfuse.patterns.norm_fp8_quantize import norm_fp8_quantize
from glmfuse.patterns.norm_qkv_rope import norm_qkv_rope
from glmfuse.patterns.norm_qkv_rope_per_token import NORM_QKV_ROPE_PER_TOKEN
from glmfuse.patterns.norm_qkv_rope_w8a8 import norm_qkv_rope_w8a8
from glmfuse.patterns.norm_quantize import norm_quantize
from glmfuse.patterns.paged_attention import paged_attention
from glmfuse.patterns.quant_grouped_mlp import quant_grouped_mlp
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quant_mlp import QUANT_MLP
from glmfuse.patterns.quantize import quantize
from glmfuse.patterns.rms_norm import rms_norm
from glmfuse.patterns.rotary import rotary
from glmfuse.patterns.rotary_embedding import rotary_embedding
from glmfuse.patterns.route_topk import route_topk
from glmfuse.patterns.router_mlp_per_token import ROUTER_MLP_PER_TOKEN
from glmfuse.patterns.router_mlp_w8a8 import router_mlp_w8a8
from glmfuse.patterns.router_quant_mlp import ROUTER_QUANT_MLP
from glmfuse.patterns.split_w4_grouped_mlp import split_w4_grouped_mlp
from glmfuse.patterns.split_w4_linear import split_w4_linear
from glmfuse.patterns.swiglu import swiglu
from glmfuse.patterns.swiglu_mlp import swiglu_mlp
from glmfuse.patterns.swiglu_mlp_per_token import SWIGLU_MLP_PER_TOKEN
from glmfuse.patterns.swiglu_mlp_w8a8 import swiglu_mlp_w8a8
from glmfuse.patterns.torchao_int8_linear import torchao_int8_linear
from glmfuse.patterns.torchao_quantize import torchao_quantize
from glmfuse.patterns.w4_grouped_mlp import w4_grouped_mlp
from glmfuse.patterns.w4_linear import w4_linear
from glmfuse.patterns.weight_only_linear import w4_weight_only_linear, weight_only_linear
from glmfuse.patterns.wide_norm_quantize import wide_norm_dynamic_quantize, wide_norm_quantize

PATTERNS: tuple[Pattern, ...] = (
    linear,
    rms_norm,
    add_rms_norm,
    rotary,
    rotary_embedding,
    swiglu,
    route_topk,
    norm_qkv_rope,
    gate_topk,
    swiglu_mlp,
    attention,
    paged_attention,
    eager_attention,
    cache_update,
    grouped_mlp,
    moe,
    mtp_head,
    linear_add_rms_norm,
    quantize,
    dynamic_quantize,
    quant_linear,
    fp8_quantize,
    fp8_linear,
    w4_linear,
    quant_grouped_mlp,
    fp8_grouped_mlp,
    w4_grouped_mlp,
    norm_quantize,
    norm_dynamic_quantize,
    norm_fp8_quantize,
    wide_norm_quantize,
    wide_norm_dynamic_quantize,
    torchao_quantize,
    torchao_int8_linear,
    fake_quantize,
    fake_quantize_rows,
    weight_only_linear,
    w4_weight_only_linear,
    split_w4_linear,
    split_w4_grouped_mlp,
    norm_qkv_rope_w8a8,
    *NORM_QKV_ROPE_PER_TOKEN,
    swiglu_mlp_w8a8,
    *QUANT_MLP.values(),
    *SWIGLU_MLP_PER_TOKEN.values(),
    router_mlp_w8a8,
    *ROUTER_MLP_PER_TOKEN,
    *ROUTER_QUANT_MLP,
    *MOE_PER_TOKEN,
)

BY_NAME: Mapping[str, Pattern] = MappingProxyType({pattern.name: pattern for pattern in PATTERNS})
