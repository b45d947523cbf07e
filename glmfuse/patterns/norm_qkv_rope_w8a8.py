"""The front of a decoder layer whose projections are int8, by a scale that is known before."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns import w8a8
from glmfuse.patterns.norm_qkv_rope import FRONT, front

_DIMS = {
    **FRONT,
    "factor": "H",
    "offset": "H",
    "inverse": "H",
    **w8a8.held("q", "H", "N*D", "(N+2*K)*D without w_k"),
    **w8a8.held("k", "H", "K*D"),
    **w8a8.held("v", "H", "K*D"),
}
_SIZES = ({"R": 5, "D": 29}, {"R": 7, "D": 37})


@pattern(
    dims=_DIMS,
    together=("w_k s_k c_k w_v s_v c_v", "w_q_norm w_k_norm"),
    examples=_SIZES,
    dtypes=w8a8.dtypes("q", "k", "v"),
    holds=w8a8.HOLDS,
)
def norm_qkv_rope_w8a8(
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    factor: Tensor,
    offset: Tensor,
    inverse: Tensor | None,
    w_q: Tensor,
    s_q: Tensor,
    c_q: Tensor,
    w_k: Tensor | None,
    s_k: Tensor | None,
    c_k: Tensor | None,
    w_v: Tensor | None,
    s_v: Tensor | None,
    c_v: Tensor | None,
    w_q_norm: Tensor | None,
    w_k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    """`norm_qkv_rope`, its norm quantised once as norm * factor + offset.

    factor, offset and inverse [hidden] or [1] as `quantize` takes them; w_q, w_k, w_v [in, out] int8, s_q, s_k, s_v
    [out] fp32 and c_q, c_k, c_v [out] int32 as `quant_linear` takes its scale and quant_bias, or w_q, s_q and c_q with
    the outputs of all three; the others as `norm_qkv_rope` has them, x bf16 or fp16 -> q, k, v, and with a residual
    the sum. A bias of the float layer is in c and what the offset adds is taken from it. Source: `norm_qkv_rope`, and
    the W8A8 layers of vllm-ascend 182b75e.
    """
    layers = ((w_q, s_q, c_q), (w_k, s_k, c_k), (w_v, s_v, c_v))
    rest = (w_q_norm, w_k_norm, cos, sin, eps, num_heads, num_kv_heads, head_dim, interleaved)
    quantised = (factor, offset, inverse)
    return front(x, residual, w_norm, lambda hidden: w8a8.linears(hidden, quantised, *layers), *rest)
