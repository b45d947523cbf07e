"""The feed-forward layer of GLM, dense or a shared expert."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.linear import linear
from glmfuse.patterns.swiglu import swiglu

Project = Callable[[Tensor], tuple[Tensor, ...]]
"""What becomes of [..., hidden] in the layers that read it: [..., out] of each."""


def gated(x: Tensor, widen: Project, narrow: Project) -> Tensor:
    """`swiglu_mlp` with any layers: `widen` gives gate and up, or both in one, `narrow` what comes down."""
    gate, up, *_ = (*widen(x), None)
    return narrow(swiglu(gate, up))[0]


@pattern(dims={"x": "... H", "w_gate": "I H; without w_up: 2*I H", "w_up": "I H", "w_down": "O I"})
def swiglu_mlp(x: Tensor, w_gate: Tensor, w_up: Tensor | None, w_down: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)).  x [..., hidden] -> [..., hidden].

    Weights as torch.nn.Linear holds them; without w_up, w_gate has the rows of both, gate first.
    Source: Shazeer 2020, equation 6; Glm4MoeMLP of transformers.
    """
    layers = [w for w in (w_gate, w_up) if w is not None]
    return gated(x, lambda x: tuple(linear(x, w, None) for w in layers), lambda x: (linear(x, w_down, None),))
