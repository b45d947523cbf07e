"""The mixture of experts of a decoder layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.gate_topk import gate_topk
from glmfuse.patterns.grouped_mlp import grouped_mlp
from glmfuse.patterns.swiglu_mlp import swiglu_mlp

Router = tuple[Tensor, Tensor, int, int, int, bool, float]
"""What `gate_topk` takes beside the rows."""


def mixture(
    x: Tensor, router: Router, routed: Callable[[Tensor, Tensor], Tensor], shared: Callable[[], Tensor]
) -> Tensor:
    """`moe` with any experts: `routed` gives those of the weights and ids that the router chooses."""
    weights, ids = gate_topk(x.view(-1, x.shape[-1]), *router)
    return routed(weights, ids) + shared()


_DIMS = {
    "x": "B S H",
    "w_router": "n_group*M H",
    "bias": "n_group*M",
    "w_gate_up": "n_group*M 2*I H",
    "w_down": "n_group*M H I",
    "w_shared_gate": "J H; without w_shared_up: 2*J H",
    "w_shared_up": "J H",
    "w_shared_down": "H J",
}
_SIZES = (
    {"n_group": 5, "M": 7, "topk_group": 3, "top_k": 11, "H": 40, "I": 24},
    {"n_group": 11, "M": 13, "topk_group": 4, "top_k": 17, "H": 56, "I": 32},
)


@pattern(dims=_DIMS, examples=_SIZES)
def moe(
    x: Tensor,
    w_router: Tensor,
    bias: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    w_shared_gate: Tensor,
    w_shared_up: Tensor | None,
    w_shared_down: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    renormalize: bool,
    scale: float,
) -> Tensor:
    """The routed experts' weighted sum, and the shared expert.  x [batch, tokens, hidden] -> the same shape.

    w_router [experts, hidden], bias [experts], w_gate_up [experts, 2 * width, hidden], w_down [experts,
    hidden, width]; the shared expert's weights as swiglu_mlp takes them. The router's scale is on the weights;
    both summands are rounded to x's dtype. Source: Glm4MoeMoE of transformers.
    """
    router = (w_router, bias, top_k, n_group, topk_group, renormalize, scale)
    return mixture(
        x,
        router,
        lambda weights, ids: grouped_mlp(x, weights, ids, w_gate_up, w_down),
        lambda: swiglu_mlp(x, w_shared_gate, w_shared_up, w_shared_down),
    )
