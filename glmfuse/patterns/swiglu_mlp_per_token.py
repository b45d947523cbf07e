"""The feed-forward layer of GLM that quantises each row by itself, before it widens and before it narrows."""

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


def _block(scheme: PerToken) -> Pattern:
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
        wide = ((w_gate, s_gate, None), (w_up, s_up, None))
        narrow = (w_down, s_down, None)
        return gated(x, lambda x: scheme.linears(x, *wide), lambda x: scheme.linears(x, narrow))

    made = pattern(
        dims={"x": "... H", **mlp_dims(scheme)},
        together=("w_up s_up",),
        examples=SIZES,
        cases=LEADS,
        dtypes=scheme.dtypes("gate", "up", "down"),
        holds=scheme.holds,
    )
    return made(named(swiglu_mlp, scheme.name))


def mlp_dims(scheme: PerToken) -> dict[str, str]:
    """The dims of the weights, in a block that calls them so."""
    return {
        **scheme.held("gate", "H", "I", "2*I without w_up"),
        **scheme.held("up", "H", "I"),
        **scheme.held("down", "I", "O", groups="F"),
    }


SWIGLU_MLP_PER_TOKEN: Mapping[str, Pattern] = {scheme.name: _block(scheme) for scheme in PER_TOKEN}
"""By the scheme's name."""
