"""The router and the shared expert of a mixture, which read the same rows."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.gate_topk import gate_topk
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named
from glmfuse.patterns.quant_mlp import SIZES, mlp_dims
from glmfuse.patterns.swiglu_mlp_per_token import SWIGLU_MLP_PER_TOKEN

ROUTER = {"w_router": "n_group*M H", "bias": "n_group*M"}
ROUTER_SIZES = (
    {"n_group": 5, "M": 8, "topk_group": 4, "top_k": 12},
    {"n_group": 9, "M": 13, "topk_group": 6, "top_k": 17},
)


def _block(scheme: PerToken) -> Pattern:
    shared = SWIGLU_MLP_PER_TOKEN[scheme.name]

    def router_mlp(
        x: Tensor,
        w_router: Tensor,
        bias: Tensor,
        w_gate: Tensor,
        s_gate: Tensor,
        w_up: Tensor | None,
        s_up: Tensor | None,
        w_down: Tensor,
        s_down: Tensor,
        top_k: int,
        n_group: int,
        topk_group: int,
        renormalize: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The experts that x chooses, with their weights, and the shared expert of x.

        x [..., hidden] bf16 or fp16, w_router [experts, hidden], bias [experts], the shared expert's weights as
        `swiglu_mlp` of the scheme takes them -> weights [tokens, top_k] fp32, ids alike int64, the shared expert's
        output [..., hidden]. Source: `gate_topk` and `swiglu_mlp`, as Glm4MoeMoE of transformers calls them.
        """
        weights, ids = gate_topk(rows_of(x), w_router, bias, top_k, n_group, topk_group, renormalize, scale)
        return weights, ids, shared(x, w_gate, s_gate, w_up, s_up, w_down, s_down)

    made = pattern(
        dims={"x": "... H", **ROUTER, **mlp_dims(scheme)},
        together=("w_up s_up",),
        examples=(SIZES[0] | ROUTER_SIZES[0], SIZES[1] | ROUTER_SIZES[1]),
        cases=LEADS,
        dtypes=scheme.dtypes("gate", "up", "down"),
        unordered=2,
        holds=scheme.holds,
    )
    return made(named(router_mlp, scheme.name))


ROUTER_MLP_PER_TOKEN = tuple(_block(scheme) for scheme in PER_TOKEN)
