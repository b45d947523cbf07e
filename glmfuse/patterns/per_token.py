"""The schemes that quantise each row by its own largest number: how rows are made and multiplied, how weights lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glmfuse.matching.pattern import Pattern, require
from glmfuse.patterns.dynamic_quantize import dynamic_quantize
from glmfuse.patterns.fp8_grouped_mlp import fp8_grouped_mlp
from glmfuse.patterns.fp8_linear import FP8, fp8_linear
from glmfuse.patterns.fp8_quantize import fp8_quantize
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.quant_grouped_mlp import quant_grouped_mlp
from glmfuse.patterns.quant_linear import quant_linear
from glmfuse.patterns.quantize import HALVES
from glmfuse.patterns.w4_grouped_mlp import w4_grouped_mlp
from glmfuse.patterns.w4_linear import w4_linear

Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
"""rows, w, scale, per_token, bias, dtype -> [tokens, out]."""

Layer = tuple[Tensor | None, Tensor | None, Tensor | None]
"""w, scale, bias; a layer that is not there has no w."""


def _int8(rows: Tensor, w: Tensor, scale: Tensor, per_token: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    result: Tensor = quant_linear(rows, w, scale, per_token, None, bias, dtype)
    return result


@dataclass(frozen=True, slots=True)
class PerToken:
    """A scheme.

    quantize: rows, and the scale of each. product: a linear layer of such rows. experts: the routed experts.
    stored: what holds a weight. is_packed: two outputs in each element of it, and scales for groups of inputs.
    """

    name: str
    quantize: Pattern
    product: Product
    experts: Pattern
    stored: torch.dtype
    is_packed: bool = False

    @property
    def holds(self) -> frozenset[torch.dtype]:
        """Dtypes of rows and weights, without which a graph has no layer of the scheme."""
        return frozenset({*self.quantize.holds, self.stored})

    def linears(self, x: Tensor, *layers: Layer) -> tuple[Tensor, ...]:
        """x through each layer that is there, quantised once.  x [..., in] bf16 or fp16 -> [..., out] of each."""
        return self.products(x, *self.quantized(x), *layers)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., in] as rows [tokens, in], and the scale of each [tokens] fp32."""
        rows, per_token = self.quantize(rows_of(x))
        return rows, per_token

    def products(self, x: Tensor, rows: Tensor, per_token: Tensor, *layers: Layer) -> tuple[Tensor, ...]:
        """The same of rows [tokens, in] that x is quantised to already, and the scale of each."""
        require(x.dtype in HALVES, "x must be bf16 or fp16", x.dtype)
        return tuple(
            self.product(rows, w, scale, per_token, bias, x.dtype).view(*x.shape[:-1], scale.shape[-1])
            for w, scale, bias in layers
            if w is not None and scale is not None
        )

    def held(self, name: str, inputs: str, outputs: str, merged: str = "", groups: str = "G") -> dict[str, str]:
        """The dims of a weight `w_<name>` [inputs, outputs] and of its scale; `merged` are its other outputs.

        These it has where the argument named in "OUTPUTS without NAME" is absent. groups: of its inputs.
        """
        clauses = [("", outputs)]
        if merged:
            more, _, absent = merged.partition(" without ")
            clauses.append((f"without {absent}:", more))
        w = "; ".join(f"{when} {inputs} {self._stored(wide)}" for when, wide in clauses)
        scale = "; ".join(f"{when} {groups if self.is_packed else ''} {wide}" for when, wide in clauses)
        return {f"w_{name}": w, f"s_{name}": scale}

    def held_by_experts(self) -> dict[str, str]:
        """The dims of the routed experts' weights [E, H, 2 I] and [E, I, H] and of their scales."""
        scales = ("E G 2*I", "E F H") if self.is_packed else ("E 2*I", "E H")
        w_gate_up, w_down = f"E H {self._stored('2*I')}", f"E I {self._stored('H')}"
        return {"w_gate_up": w_gate_up, "s_gate_up": scales[0], "w_down": w_down, "s_down": scales[1]}

    def dtypes(self, *names: str) -> dict[str, torch.dtype]:
        """Those of weights of these names and of their scales."""
        return {f"w_{name}": self.stored for name in names} | {f"s_{name}": torch.float32 for name in names}

    @property
    def row_dtypes(self) -> dict[str, torch.dtype]:
        """Those of rows and of their scales, in a block that calls them so."""
        (rows,) = self.quantize.holds
        return {"rows": rows, "per_token": torch.float32}

    def _stored(self, outputs: str) -> str:
        return f"({outputs})//2" if self.is_packed else outputs


PER_TOKEN = (
    PerToken("w8a8_dynamic", dynamic_quantize, _int8, quant_grouped_mlp, torch.int8),
    PerToken("fp8_per_token", fp8_quantize, fp8_linear, fp8_grouped_mlp, FP8),
    PerToken("w4a8_dynamic", dynamic_quantize, w4_linear, w4_grouped_mlp, torch.uint8, is_packed=True),
)


def named(block: Callable[..., Tensor | tuple[Tensor, ...]], scheme: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The block under the name of its pattern in this scheme."""
    block.__name__ = f"{block.__name__}_{scheme}"
    return block
