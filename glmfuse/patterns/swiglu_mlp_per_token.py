"""The feed-forward layer of GLM that quantises each row by itself, before it widens and before it narrows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named
from glmfuse.patterns.quant_mlp import QUANT_MLP, SIZES, mlp_dims


def _block(scheme: PerToken) -> Pattern:
    layer = QUANT_MLP[scheme.name]

    def swiglu_mlp(
        x: Tensor,
        w_gate: Tensor,
        s_gate: Tensor,
        w_up: Tensor | None,
        s_up: Tensor | None,
        w_down: Tensor,
        s_down: Tensor,
    ) -> Tensor:
        """down(silu(gate(x)) * up(x)), x and what is activated quantised row by row.

        x [..., hidden] bf16 or fp16; w_gate, w_up, w_down [in, out] and their scales as the scheme's linear layer
        takes them; without w_up, w_gate has the outputs of both, gate first -> [..., hidden]. Each layer is
        rounded to x's dtype. Source: `swiglu_mlp`, and the scheme's linear layer.
        """
        result: Tensor = layer(x, *scheme.quantized(x), w_gate, s_gate, w_up, s_up, w_down, s_down)
        return result

    made = pattern(
        dims={"x": "... H", **mlp_dims(scheme)},
        together=("w_up s_up",),
        examples=SIZES,
        cases=LEADS,
        dtypes=scheme.dtypes("gate", "up", "down"),
        holds=scheme.holds,
    )
    return made(named(swiglu_mlp, scheme.name))


SWIGLU_MLP_PER_TOKEN: Mapping[str, Pattern] = {scheme.name: _block(scheme) for scheme in PER_TOKEN}
"""By the scheme's name."""
