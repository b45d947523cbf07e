"""The front of a decoder layer: from hidden states to rotated queries and keys, and values."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.pattern import require
from glmfuse.matching.register import pattern
from glmfuse.patterns.linear import linear
from glmfuse.patterns.normed import normed
from glmfuse.patterns.rms_norm import rms_norm
from glmfuse.patterns.rotary import rotary
from glmfuse.patterns.swiglu_mlp import Project


def front(
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    project: Project,
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
    """`norm_qkv_rope` with any layers: `project` gives q, k and v, or all in one."""
    require(not interleaved or w_q_norm is None, "neighbours, or norms of the heads: no model has both")
    hidden, total = normed(x, residual, w_norm, eps)
    projected = project(hidden)
    if len(projected) == 1:
        widths = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        projected = projected[0].split(widths, dim=-1)
    q = projected[0].unflatten(-1, (num_heads, head_dim))
    k, v = (each.unflatten(-1, (num_kv_heads, head_dim)) for each in projected[1:])
    if w_q_norm is not None and w_k_norm is not None:
        q, k = rms_norm(q, w_q_norm, eps), rms_norm(k, w_k_norm, eps)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    return rotary(q, cos, sin, interleaved), rotary(k, cos, sin, interleaved), v, *total


FRONT = {
    "x": "B S H",
    "residual": "B S H",
    "w_norm": "H",
    "w_q_norm": "D",
    "w_k_norm": "D",
    "cos": "B 1 S 2*R",
    "sin": "B 1 S 2*R",
    "num_heads": "N",
    "num_kv_heads": "K",
    "head_dim": "D",
}
"""What is the same whatever the layers hold."""

BIASES = {"b_q": "N*D; without w_k: (N+2*K)*D", "b_k": "K*D", "b_v": "K*D"}
_WEIGHTS = {"w_q": "N*D H; without w_k: (N+2*K)*D H", "w_k": "K*D H", "w_v": "K*D H"}
_SIZES = ({"R": 5, "D": 29}, {"R": 7, "D": 37})


@pattern(dims={**FRONT, **_WEIGHTS, **BIASES}, together=("w_k w_v", "w_q_norm w_k_norm"), examples=_SIZES)
def norm_qkv_rope(
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    w_q: Tensor,
    w_k: Tensor | None,
    w_v: Tensor | None,
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
    """(Add,) RMSNorm, q/k/v projections, (norm of each head,) rotary.

    x, residual [batch, tokens, hidden]; w_q, w_k, w_v as torch.nn.Linear holds them, or w_q with the
    rows of all three; cos and sin [batch or 1, 1, tokens, rotary width] -> q [batch, heads, tokens,
    head_dim], k and v [batch, kv heads, tokens, head_dim], and with a residual the sum of the two.
    One eps serves all norms; interleaved as rotary has it. Source: Glm4MoeDecoderLayer and
    Glm4MoeAttention of transformers.
    """

    def project(hidden: Tensor) -> tuple[Tensor, ...]:
        layers = ((w_q, b_q), (w_k, b_k), (w_v, b_v))
        return tuple(linear(hidden, w, b) for w, b in layers if w is not None)

    rest = (w_q_norm, w_k_norm, cos, sin, eps, num_heads, num_kv_heads, head_dim, interleaved)
    return front(x, residual, w_norm, project, *rest)


@norm_qkv_rope.constraint
def _(x: Tensor) -> None:
    require(x.dtype in (torch.bfloat16, torch.float16, torch.float32), "x must be bf16, fp16 or fp32", x.dtype)
