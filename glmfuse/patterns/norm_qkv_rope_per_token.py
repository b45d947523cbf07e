"""The front of a decoder layer whose projections quantise each row by itself."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.pattern import Pattern
from glmfuse.matching.register import pattern
from glmfuse.patterns.norm_qkv_rope import BIASES, FRONT, front
from glmfuse.patterns.per_token import PER_TOKEN, PerToken, named

_SIZES = ({"R": 5, "D": 26, "N": 7, "K": 3, "G": 3, "H": 33}, {"R": 7, "D": 34, "N": 11, "K": 5, "G": 5, "H": 65})
"""Even heads, since two outputs may share a byte, and whole groups."""

_TOGETHER = ("w_k s_k w_v s_v b_k b_v", "b_q b_k b_v", "w_q_norm w_k_norm")
"""Projections have a bias all or none."""


def _block(scheme: PerToken) -> Pattern:
    def norm_qkv_rope(
        x: Tensor,
        residual: Tensor | None,
        w_norm: Tensor,
        w_q: Tensor,
        s_q: Tensor,
        w_k: Tensor | None,
        s_k: Tensor | None,
        w_v: Tensor | None,
        s_v: Tensor | None,
        b_q: Tensor | None,
        b_k: Tensor | None,
        b_v: Tensor | None,
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
        """`norm_qkv_rope`, its norm quantised once for the layers of the scheme.

        w_q, w_k, w_v [in, out] and their scales as the scheme's linear layer takes them, or w_q and s_q with the
        outputs of all three; b_q, b_k, b_v [out] floating; the others as `norm_qkv_rope` has them, x bf16 or fp16
        -> q, k, v, and with a residual the sum. The norm is rounded before it is quantised, and each projection
        before the norms of the heads. Source: `norm_qkv_rope`, and the scheme's linear layer.
        """
        layers = ((w_q, s_q, b_q), (w_k, s_k, b_k), (w_v, s_v, b_v))
        rest = (w_q_norm, w_k_norm, cos, sin, eps, num_heads, num_kv_heads, head_dim, interleaved)
        return front(x, residual, w_norm, lambda hidden: scheme.linears(hidden, *layers), *rest)

    weights = {
        **scheme.held("q", "H", "N*D", "(N+2*K)*D without w_k"),
        **scheme.held("k", "H", "K*D"),
        **scheme.held("v", "H", "K*D"),
    }
    made = pattern(
        dims={**FRONT, **weights, **BIASES},
        together=_TOGETHER,
        examples=_SIZES,
        dtypes=scheme.dtypes("q", "k", "v"),
        holds=scheme.holds,
    )
    return made(named(norm_qkv_rope, scheme.name))


NORM_QKV_ROPE_PER_TOKEN = tuple(_block(scheme) for scheme in PER_TOKEN)
