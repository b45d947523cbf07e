"""The feed-forward layer of GLM behind rows that are quantised already, each by its own largest number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named
from glmfuse.patterns.swiglu_mlp import gated

SIZES = (
    {"G": 3, "H": 66, "F": 5, "I": 70, "O": 46},
    {"G": 7, "H": 42, "F": 11, "I": 22, "O": 58},
)
"""Whole groups, and two outputs to a byte."""

ROWS = {"rows": "(...) H", "per_token": "(...)"}


def mlp_dims(scheme: PerToken) -> dict[str, str]:
    """The dims of the weights, in a block that calls them so."""
    return {
        **scheme.held("gate", "H", "I", "2*I without w_up"),
        **scheme.held("up", "H", "I"),
        **scheme.held("down", "I", "O", groups="F"),
    }


def _block(scheme: PerToken) -> Pattern:
    def quant_mlp(
        x: Tensor,
        rows: Tensor,
        per_token: Tensor,
        w_gate: Tensor,
        s_gate: Tensor,
        w_up: Tensor | None,
        s_up: Tensor | None,
        w_down: Tensor,
        s_down: Tensor,
    ) -> Tensor:
        """down(silu(gate(x)) * up(x)) of the rows that x is quantised to; what is activated is quantised here.

        x [..., hidden] bf16 or fp16, of which nothing but shape and dtype is read; rows [tokens, hidden] and per_token
        [tokens] fp32 as the scheme quantises it; the weights as `swiglu_mlp` of the scheme takes them -> [..., hidden].
        Who quantised x may have done so for others as well: a norm before it, or routed experts of the same x. Source:
        `swiglu_mlp`, and the scheme's linear layer.
        """
        wide = ((w_gate, s_gate, None), (w_up, s_up, None))
        narrow = (w_down, s_down, None)
        return gated(x, lambda x: scheme.products(x, rows, per_token, *wide), lambda x: scheme.linears(x, narrow))

    made = pattern(
        dims={"x": "... H", **ROWS, **mlp_dims(scheme)},
        together=("w_up s_up",),
        examples=SIZES,
        cases=LEADS,
        dtypes={**scheme.dtypes("gate", "up", "down"), **scheme.row_dtypes},
        context={"rows per_token": scheme.quantized},
        holds=scheme.holds,
    )
    return made(named(quant_mlp, scheme.name))


QUANT_MLP: Mapping[str, Pattern] = {scheme.name: _block(scheme) for scheme in PER_TOKEN}
"""By the scheme's name."""
