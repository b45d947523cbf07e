"""The entry of a multi-token prediction layer: the next token's embedding joined with the hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern
from glmfuse.patterns.linear import linear
from glmfuse.patterns.rms_norm import rms_norm

_DIMS = {
    "embeds": "... H",
    "hidden": "... H",
    "positions": "...",
    "w_embeds": "H",
    "w_hidden": "H",
    "w_proj": "O 2*H",
}


@pattern(dims=_DIMS, dtypes={"positions": torch.int64})
def mtp_head(
    embeds: Tensor,
    hidden: Tensor,
    positions: Tensor | None,
    w_embeds: Tensor,
    w_hidden: Tensor,
    w_proj: Tensor,
    eps: float,
) -> Tensor:
    """w_proj [rms_norm(embeds); rms_norm(hidden)].  embeds, hidden [..., hidden] -> [..., out].

    w_embeds, w_hidden [hidden], w_proj [out, 2 * hidden]. With positions [...] int64 the embedding at position
    0 counts as zero: no hidden state comes before it. One eps serves both norms. Source: DeepSeek-V3 report,
    equation 21, embedding first as in MtpLayer of transformers; the positions as in the MTP layer of vLLM.
    """
    if positions is not None:
        embeds = torch.where(positions.unsqueeze(-1) == 0, 0, embeds)
    joined = torch.cat([rms_norm(embeds, w_embeds, eps), rms_norm(hidden, w_hidden, eps)], dim=-1)
    return linear(joined, w_proj, None)
