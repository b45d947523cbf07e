"""The router of a mixture, and the shared expert of rows that are quantised already."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.gate_topk import gate_topk
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named
from glmfuse.patterns.quant_mlp import QUANT_MLP, ROWS, SIZES, mlp_dims
from glmfuse.patterns.router_mlp_per_token import ROUTER, ROUTER_SIZES


def _block(scheme: PerToken) -> Pattern:
    shared = QUANT_MLP[scheme.name]

    def router_quant_mlp(
        x: Tensor,
        rows: Tensor,
        per_token: Tensor,
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
        """`router_mlp` of x and of the rows that it is quantised to, which routed experts may read as well.

        x [..., hidden] bf16 or fp16, rows [tokens, hidden] and per_token [tokens] fp32 as the scheme quantises it, the
        others as `router_mlp` of the scheme takes them -> weights [tokens, top_k] fp32, ids alike int64, the shared
        expert's output [..., hidden]. Source: `gate_topk` and `quant_mlp`, behind a norm that quantises.
        """
        weights, ids = gate_topk(rows_of(x), w_router, bias, top_k, n_group, topk_group, renormalize, scale)
        return weights, ids, shared(x, rows, per_token, w_gate, s_gate, w_up, s_up, w_down, s_down)

    made = pattern(
        dims={"x": "... H", **ROWS, **ROUTER, **mlp_dims(scheme)},
        together=("w_up s_up",),
        examples=(SIZES[0] | ROUTER_SIZES[0], SIZES[1] | ROUTER_SIZES[1]),
        cases=LEADS,
        dtypes={**scheme.dtypes("gate", "up", "down"), **scheme.row_dtypes},
        unordered=2,
        context={"rows per_token": scheme.quantized},
        holds=scheme.holds,
    )
    return made(named(router_quant_mlp, scheme.name))


ROUTER_QUANT_MLP = tuple(_block(scheme) for scheme in PER_TOKEN)
