"""The feed-forward layer of GLM, dense or a shared expert."""

from __future__ import annotations

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.linear import linear
from glmfuse.patterns.swiglu import swiglu


@pattern(dims={"x": "... H", "w_gate": "I H; without w_up: 2*I H", "w_up": "I H", "w_down": "O I"})
def swiglu_mlp(x: Tensor, w_gate: Tensor, w_up: Tensor | None, w_down: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)).  x [..., hidden] -> [..., hidden].

    Weights as torch.nn.Linear holds them; without w_up, w_gate has the rows of both, gate first.
    Source: Shazeer 2020, equation 6; Glm4MoeMLP of transformers.
    """
    up = None if w_up is None else linear(x, w_up, None)
    return linear(swiglu(linear(x, w_gate, None), up), w_down, None)
