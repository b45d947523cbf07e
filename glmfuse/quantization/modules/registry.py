"""Which module a layer of each kind becomes."""

from __future__ import annotations

from collections.abc import Mapping

from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.fp8_per_token import Fp8Experts, Fp8Linear
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.modules.w4a8_dynamic import W4A8DynamicExperts, W4A8DynamicLinear
from glmfuse.quantization.modules.w8a8 import W8A8Linear
from glmfuse.quantization.modules.w8a8_dynamic import W8A8DynamicExperts, W8A8DynamicLinear

LINEARS: Mapping[str, type[QuantizedLinear]] = {
    linear.kind.name: linear for linear in (W8A8Linear, W8A8DynamicLinear, W4A8DynamicLinear, Fp8Linear)
}
EXPERTS: Mapping[str, type[QuantizedExperts]] = {
    experts.kind.name: experts for experts in (W8A8DynamicExperts, W4A8DynamicExperts, Fp8Experts)
}
"""No experts have static scales of inputs: ModelSlim writes none, and vllm-ascend reads none."""
