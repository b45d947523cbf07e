"""8-bit floats: rows by the largest number of each, weights by channel."""

from __future__ import annotations

from torch import Tensor

from glmfuse.patterns.fp8_grouped_mlp import fp8_grouped_mlp
from glmfuse.patterns.fp8_linear import fp8_linear
from glmfuse.patterns.fp8_quantize import fp8_quantize
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.held import replace
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.schemes import FP8_PER_TOKEN


class Fp8Linear(QuantizedLinear):
    """fp8_quantize(x) times weight, times weight_scale and the row's, plus the float bias if there is one.

    Source: the scheme of compressed-tensors with float8 channels and dynamic tokens, as GLM-4.6-FP8 has it.
    """

    kind = FP8_PER_TOKEN
    weight: Tensor
    weight_scale: Tensor

    def product(self, rows: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        x, per_token = fp8_quantize(rows)
        return fp8_linear(x, self.weight.t(), self.weight_scale, per_token, self._bias, rows.dtype)

    def after_loading(self) -> None:
        """A row of scales."""
        replace(self, (), weight_scale=self.weight_scale.squeeze(-1))


class Fp8Experts(QuantizedExperts):
    """Each expert as three such layers, one quantisation of x for all."""

    kind = FP8_PER_TOKEN
    gate_up_proj: Tensor
    gate_up_proj_scale: Tensor
    down_proj: Tensor
    down_proj_scale: Tensor

    def mlp(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """[1, tokens, hidden] -> [1, tokens, hidden]."""
        gate_up, down = self.gate_up_proj.mT, self.down_proj.mT
        return fp8_grouped_mlp(x, weights, ids, gate_up, self.gate_up_proj_scale, down, self.down_proj_scale)

    def after_loading(self) -> None:
        """A row of scales for each expert."""
        scales = {name: getattr(self, name).squeeze(-1) for name in ("gate_up_proj_scale", "down_proj_scale")}
        replace(self, (), **scales)
