"""The feed-forward layer of GLM in int8, by scales that are known before."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns import w8a8
from glmfuse.patterns.norm_quantize import LEADS
from glmfuse.patterns.swiglu_mlp import gated

DIMS = {
    "factor": "H",
    "offset": "H",
    "inverse": "H",
    **w8a8.held("gate", "H", "I", "2*I without w_up"),
    **w8a8.held("up", "H", "I"),
    "down_factor": "I",
    "down_offset": "I",
    "down_inverse": "I",
    **w8a8.held("down", "I", "O"),
}


@pattern(
    dims={"x": "... H", **DIMS},
    together=("w_up s_up c_up",),
    cases=LEADS,
    dtypes=w8a8.dtypes("gate", "up", "down"),
    holds=w8a8.HOLDS,
)
def swiglu_mlp_w8a8(
    x: Tensor,
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
) -> Tensor:
    """down(silu(gate(x)) * up(x)), x and what is activated quantised by factors and offsets of their own.

    x [..., hidden] bf16 or fp16; factor, offset and inverse as `quantize` takes them, for x and for down; w_gate, w_up,
    w_down [in, out] int8, their scales [out] fp32 and biases [out] int32; without w_up, w_gate has the outputs of both,
    gate first -> [..., hidden]. Each layer is rounded to x's dtype. Source: `swiglu_mlp`, and the W8A8 layers of
    vllm-ascend 182b75e.
    """
    wide = ((w_gate, s_gate, c_gate), (w_up, s_up, c_up))
    narrow = (w_down, s_down, c_down)
    return gated(
        x,
        lambda x: w8a8.linears(x, (factor, offset, inverse), *wide),
        lambda x: w8a8.linears(x, (down_factor, down_offset, down_inverse), narrow),
    )
