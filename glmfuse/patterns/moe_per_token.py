"""The mixture of experts of a decoder layer, all of its layers but the router quantising each row by itself."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.moe import mixture
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named
from glmfuse.patterns.router_mlp_per_token import ROUTER
from glmfuse.patterns.swiglu_mlp_per_token import SWIGLU_MLP_PER_TOKEN

_SIZES = (
    {"n_group": 3, "M": 8, "topk_group": 2, "top_k": 5, "G": 3, "H": 30, "F": 5, "I": 20, "L": 7, "J": 14},
    {"n_group": 4, "M": 9, "topk_group": 3, "top_k": 7, "G": 7, "H": 42, "F": 4, "I": 12, "L": 9, "J": 18},
)
_LEAD = ({"B": 2, "S": 7}, {"B": 3, "S": 5})


def _block(scheme: PerToken) -> Pattern:
    swiglu_mlp = SWIGLU_MLP_PER_TOKEN[scheme.name]

    def moe(
        x: Tensor,
        w_router: Tensor,
        bias: Tensor,
        w_gate_up: Tensor,
        s_gate_up: Tensor,
        w_down: Tensor,
        s_down: Tensor,
        w_shared_gate: Tensor,
        s_shared_gate: Tensor,
        w_shared_up: Tensor | None,
        s_shared_up: Tensor | None,
        w_shared_down: Tensor,
        s_shared_down: Tensor,
        top_k: int,
        n_group: int,
        topk_group: int,
        renormalize: bool,
        scale: float,
    ) -> Tensor:
        """`moe`, its experts' layers those of the scheme.  x [batch, tokens, hidden] bf16 or fp16 -> the same shape.

        w_router [experts, hidden], bias [experts]; w_gate_up, w_down and their scales as the scheme's routed experts
        take them, the shared expert's as its swiglu_mlp does. Both summands are rounded to x's dtype. Source: `moe`.
        """
        router = (w_router, bias, top_k, n_group, topk_group, renormalize, scale)
        experts = (w_gate_up, s_gate_up, w_down, s_down)
        widen = (w_shared_gate, s_shared_gate, w_shared_up, s_shared_up)
        return mixture(
            x,
            router,
            lambda weights, ids: scheme.experts(x, weights, ids, *experts),
            lambda: swiglu_mlp(x, *widen, w_shared_down, s_shared_down),
        )

    shared = {
        **scheme.held("shared_gate", "H", "J", "2*J without w_shared_up"),
        **scheme.held("shared_up", "H", "J"),
        **scheme.held("shared_down", "J", "H", groups="L"),
    }
    made = pattern(
        dims={"x": "B S H", **ROUTER, **_experts(scheme), **shared},
        together=("w_shared_up s_shared_up",),
        examples=(_SIZES[0] | _LEAD[0], _SIZES[1] | _LEAD[1]),
        dtypes=scheme.dtypes("gate_up", "down", "shared_gate", "shared_up", "shared_down"),
        holds=scheme.holds,
    )
    return made(named(moe, scheme.name))


def _experts(scheme: PerToken) -> dict[str, str]:
    """The dims of the routed experts, which are as many as the router has rows."""
    return {name: f"n_group*M {dims.removeprefix('E ')}" for name, dims in scheme.held_by_experts().items()}


MOE_PER_TOKEN = tuple(_block(scheme) for scheme in PER_TOKEN)
