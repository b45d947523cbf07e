"""int8 rows by the largest number of each, int8 weights by channel."""

from __future__ import annotations

from torch import Tensor

from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.quant_grouped_mlp import quant_grouped_mlp
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.held import replace
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.modules.symmetric import drop_zero_offsets
from glmfuse.quantization.schemes import W8A8_DYNAMIC


class W8A8DynamicLinear(QuantizedLinear):
    """dynamic_quantize(x) times weight, times weight_scale and the row's, plus the float bias if there is one.

    Source: type W8A8_DYNAMIC of ModelSlim; w8a8_dynamic.py of vllm-ascend.
    """

    kind = W8A8_DYNAMIC
    weight: Tensor
    weight_scale: Tensor

    def product(self, rows: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        x, per_token = dynamic_quantize(rows)
        return quant_linear(x, self.weight.t(), self.weight_scale, per_token, None, self._bias, rows.dtype)

    def after_loading(self) -> None:
        """A row of scales; there is no offset in symmetric weights."""
        drop_zero_offsets(self, self.name)
        replace(self, (), weight_scale=self.weight_scale.squeeze(-1))


class W8A8DynamicExperts(QuantizedExperts):
    """Each expert as three such layers, one quantisation of x for all.  Source: w8a8_dynamic.py of vllm-ascend."""

    kind = W8A8_DYNAMIC
    gate_up_proj: Tensor
    gate_up_proj_scale: Tensor
    down_proj: Tensor
    down_proj_scale: Tensor

    def mlp(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """[1, tokens, hidden] -> [1, tokens, hidden]."""
        gate_up, down = self.gate_up_proj.mT, self.down_proj.mT
        return quant_grouped_mlp(x, weights, ids, gate_up, self.gate_up_proj_scale, down, self.down_proj_scale)

    def after_loading(self) -> None:
        """A row of scales for each expert."""
        drop_zero_offsets(self, self.name)
        scales = {name: getattr(self, name).squeeze(-1) for name in ("gate_up_proj_scale", "down_proj_scale")}
        replace(self, (), **scales)
