"""Attention with a bias on the scores, which are never written."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.aclnn.attention import OPS, attend, attendable, copied, group_of
from glmfuse.lowering.aclnn.gain import gain_of
from glmfuse.lowering.aclnn.kernel import AclnnKernel
from glmfuse.lowering.aclnn.limits import alike
from glmfuse.lowering.aten.gain import size
from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Gain, Request
from glmfuse.patterns.eager_attention import repeated


def _eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The bias is added in fp32; the operator wants it for each head.

    The pattern rounds scores, their sum with the bias, and probabilities; this the probabilities alone.
    """
    if bias is None:
        return attend(q, k, v, scale)
    heads = bias.expand(bias.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return attend(q, k, v, scale, pse_shift=heads.contiguous())


def _limits(request: Request) -> str | None:
    q, k, v, bias = (request.tensors.get(name) for name in ("q", "k", "v", "bias"))
    assert q is not None
    assert k is not None
    assert v is not None
    return attendable(q, k, v) or (None if bias is None else alike(q=q, bias=bias) or _biased(q, k, bias))


def _biased(q: Layout, k: Layout, bias: Layout) -> str | None:
    """Whether the bias is of the scores' size, one for all heads or one for each, and for all sequences or each."""
    taken = [(batch, heads, q.shape[2], k.shape[2]) for batch in (q.shape[0], 1) for heads in (1, q.shape[1])]
    return None if bias.shape in taken else f"a bias of shape {bias.shape}; the operator takes {taken[0]}"


def _gain(request: Request) -> Gain:
    """The bias is spread over the heads, instead of scores that each operator writes for the next one to read."""
    q, k = request.tensors["q"], request.tensors["k"]
    held, scores = 2.0 * size(k), size(q) / int(q.shape[-1]) * _known(k.shape[2])
    times = 1 + 2 * group_of(request) if request.variant.spelling == repeated.__name__ else 1
    spread = 2 * scores if "bias" in request.tensors else 0
    passes = 2 * (request.compute_nodes - 1)
    return gain_of(request, 1, held + spread + copied(request, "q", "k", "v"), held * times + passes * scores)


def _known(tokens: object) -> int:
    """A size that varies counts as the least there is, as it does in bytes."""
    return tokens if isinstance(tokens, int) else 1


EAGER_ATTENTION = AclnnKernel(_eager_attention, OPS, _limits, _gain)
