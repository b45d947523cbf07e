"""int8 rows by the largest number of each, int4 weights by channel or by groups of inputs."""

from __future__ import annotations

from torch import Tensor, nn

from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.w4_grouped_mlp import w4_grouped_mlp
from glmfuse.patterns.w4_linear import w4_linear
from glmfuse.quantization.modules.experts import PROJECTIONS, QuantizedExperts
from glmfuse.quantization.modules.held import replace
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.modules.symmetric import drop_zero_offsets
from glmfuse.quantization.prepare.int4 import as_read
from glmfuse.quantization.prepare.two_levels import fold
from glmfuse.quantization.schemes import W4A8_DYNAMIC, Linear


class W4A8DynamicLinear(QuantizedLinear):
    """dynamic_quantize(x) times int4 weights, the sum of each group times its scale, plus a float bias if any.

    Both versions of ModelSlim's files and those of compressed-tensors become the same: two outputs in a byte, and one
    scale for each group and output. scale_bias corrects the halves that an NPU's kernel multiplies apart; whole
    products need none. Source: type W4A8_DYNAMIC of ModelSlim; w4a8.py of vllm-ascend.
    """

    kind = W4A8_DYNAMIC
    weight: Tensor
    scale: Tensor

    def product(self, rows: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        x, per_token = dynamic_quantize(rows)
        return w4_linear(x, self.weight, self.scale, per_token, self._bias, rows.dtype)

    def after_loading(self) -> None:
        """Pack the weights as they are read, and fold the second level of scales."""
        drop_zero_offsets(self, self.name)
        weight, scale = _as_read(self, self.name, "weight", self.sizes)
        replace(self, ("weight_scale", "weight_scale_second"), weight=weight, scale=scale)


class W4A8DynamicExperts(QuantizedExperts):
    """Each expert as three such layers, one quantisation of x for all.  Source: w4a8.py of vllm-ascend."""

    kind = W4A8_DYNAMIC
    gate_up_proj: Tensor
    gate_up_scale: Tensor
    down_proj: Tensor
    down_scale: Tensor

    def mlp(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """[1, tokens, hidden] -> [1, tokens, hidden]."""
        scales = self.gate_up_scale, self.down_scale
        return w4_grouped_mlp(x, weights, ids, self.gate_up_proj, scales[0], self.down_proj, scales[1])

    def after_loading(self) -> None:
        """Pack the weights as they are read, and fold the second level of scales."""
        drop_zero_offsets(self, self.name)
        for name, projections in PROJECTIONS.items():
            one = self.sizes.linear(projections[0])
            whole = Linear(len(projections) * one.outputs, one.inputs)
            weight, scale = _as_read(self, self.name, name, whole)
            made = {name: weight, f"{name.removesuffix('_proj')}_scale": scale}
            replace(self, (f"{name}_scale", f"{name}_scale_second"), **made)


def _as_read(module: nn.Module, layer: str, name: str, sizes: Linear) -> tuple[Tensor, Tensor]:
    """weight [..., in, out / 2] uint8 and scale [..., groups, out] fp32 of the tensors that begin with this name.

    compressed-tensors has one level of scales, of groups or of one; ModelSlim has groups in a second level.
    """
    weight = as_read(getattr(module, name), sizes.inputs, sizes.outputs, layer)
    scale = getattr(module, "weight_scale" if name == "weight" else f"{name}_scale")
    second = getattr(module, "weight_scale_second" if name == "weight" else f"{name}_scale_second", None)
    return weight, scale.mT.contiguous() if second is None else fold(scale, second, layer)
