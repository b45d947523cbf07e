"""The router of a mixture and its shared expert in int8, by scales that are known before."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns import w8a8
from glmfuse.patterns.gate_topk import gate_topk
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.normed import rows_of
from glmfuse.patterns.router_mlp_per_token import ROUTER, ROUTER_SIZES
from glmfuse.patterns.swiglu_mlp_w8a8 import DIMS, swiglu_mlp_w8a8


@pattern(
    dims={"x": "... H", **ROUTER, **DIMS},
    together=("w_up s_up c_up",),
    examples=ROUTER_SIZES,
    cases=LEADS,
    dtypes=w8a8.dtypes("gate", "up", "down"),
    unordered=2,
    holds=w8a8.HOLDS,
)
def router_mlp_w8a8(
    x: Tensor,
    w_router: Tensor,
    bias: Tensor,
    factor: Tensor,
    offset: Tensor,
    inverse: Tensor | None,
    w_gate: Tensor,
    s_gate: Tensor,
    c_gate: Tensor,
    w_up: Tensor | None,
    s_up: Tensor | None,
    c_up: Tensor | None,
    down_factor: Tensor,
    down_offset: Tensor,
    down_inverse: Tensor | None,
    w_down: Tensor,
    s_down: Tensor,
    c_down: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The experts that x chooses, with their weights, and the shared expert of x.

    x [..., hidden] bf16 or fp16, w_router [experts, hidden], bias [experts], the shared expert's tensors as
    `swiglu_mlp_w8a8` takes them -> weights [tokens, top_k] fp32, ids alike int64, the shared expert's output [...,
    hidden]. Source: `gate_topk` and `swiglu_mlp_w8a8`, as Glm4MoeMoE of transformers calls them.
    """
    weights, ids = gate_topk(rows_of(x), w_router, bias, top_k, n_group, topk_group, renormalize, scale)
    widened = (factor, offset, inverse, w_gate, s_gate, c_gate, w_up, s_up, c_up)
    narrowed = (down_factor, down_offset, down_inverse, w_down, s_down, c_down)
    return weights, ids, swiglu_mlp_w8a8(x, *widened, *narrowed)
