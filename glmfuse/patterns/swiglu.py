"""The gated activation of GLM's feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glmfuse.matching.register import pattern


@pattern(dims={"gate": "... 2*I", "up": "... 2*I"})
def swiglu(gate: Tensor, up: Tensor | None) -> Tensor:
    """silu(gate) * up.  gate, up [..., width] -> [..., width].

    Without `up`, gate holds both, gate first: [..., 2 * width] -> [..., width].
    Source: Shazeer 2020, equation 6.
    """
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    return F.silu(gate) * up
