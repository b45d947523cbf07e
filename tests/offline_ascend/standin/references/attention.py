"""Softmax attention as the flash kernels compute it, for one sequence, and the masks that they know.

Scores, maxima and sums are fp32. The probabilities, before they are divided by their sum, go through the query's
dtype into the second product: that is an assumption. The kernels go through the keys block by block; here all of them
at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.offline_ascend.standin.references.reference import Unsupported

EVERYTHING = 2**31 - 1  # a band that excludes nothing
TRIANGLE = 2048  # the compressed mask of the causal modes


@dataclass(frozen=True)
class Attended:
    """out [heads, queries, dim] of the query's dtype; maximum and total [heads, queries, 1] fp32.

    A query that sees no key has out 0, maximum -inf and total 0.
    """

    out: Tensor
    maximum: Tensor
    total: Tensor

    @property
    def log_sum_exp(self) -> Tensor:
        """maximum + log(total)."""
        return self.maximum + self.total.log()


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None, shift: Tensor | None = None
) -> Attended:
    """query [heads, queries, dim], key and value [kv heads, keys, dim]; heads / kv heads of them share a key.

    hidden [queries, keys] or [heads, queries, keys] is True where a query does not see a key; shift [heads, queries,
    keys] is added to the scaled scores.
    """
    shared = query.shape[0] // key.shape[0]
    key, value = (each.float().repeat_interleave(shared, 0) for each in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * scale
    if shift is not None:
        scores = scores + shift.float()
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    maximum = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - maximum.nan_to_num(neginf=0.0))
    total = weights.sum(-1, keepdim=True)
    out = weights.to(query.dtype).float() @ value / total
    return Attended(out.masked_fill(total == 0, 0.0).to(query.dtype), maximum, total)


@dataclass(frozen=True)
class Mask:
    """A mask argument with its sparse mode: True, or 1, is hidden.

    0: the whole mask and the band of pre and next, from the upper left. 1: the whole mask. 2: causal from the upper
    left. 3: causal from the lower right. 4: the band from the lower right. 2 to 4 come with the triangle of 2048.
    """

    mask: Tensor | None
    mode: int = 0
    before: int = EVERYTHING
    after: int = EVERYTHING

    def of(self, batch: int, queries: int, keys: int) -> Tensor | None:
        """What sequence `batch` hides, [queries, keys] or [heads, queries, keys]."""
        if self.mask is None:
            return None
        if self.mode in (0, 1):
            whole = self._whole(self.mask, batch)[..., :queries, :keys].bool()
            return whole if self.mode == 1 else whole | self._band(queries, keys, 0)
        if self.mode not in (2, 3, 4):
            raise Unsupported(f"sparse_mode {self.mode}; the references have 0 to 4")
        check_triangle(self.mask, self.mode)
        if self.mode == 4:
            return self._band(queries, keys, keys - queries)
        return Mask(None, 0, EVERYTHING, 0)._band(queries, keys, 0 if self.mode == 2 else keys - queries)

    def _whole(self, mask: Tensor, batch: int) -> Tensor:
        """The mask of one sequence, from [q, k], [1, q, k] or [b, heads or 1, q, k]."""
        if mask.dim() == 2:
            return mask
        one = mask[batch if mask.shape[0] > 1 else 0]
        return one[0] if one.dim() == 3 and one.shape[0] == 1 else one

    def _band(self, queries: int, keys: int, diagonal: int) -> Tensor:
        """Hidden outside of q + diagonal - before <= k <= q + diagonal + after."""
        distance = torch.arange(keys) - torch.arange(queries).unsqueeze(-1) - diagonal
        return (distance > self.after) | (distance < -self.before)


def check_triangle(mask: Tensor, mode: int) -> None:
    """The causal modes do not read a mask of the scores' size, but one triangle for all."""
    size = mask.shape[-2:]
    if size != (TRIANGLE, TRIANGLE) or mask.numel() != TRIANGLE**2:
        raise ValueError(f"sparse_mode {mode} takes atten_mask [{TRIANGLE}, {TRIANGLE}], not {list(mask.shape)}")
    if not torch.equal(mask.reshape(size).bool(), torch.ones(size, dtype=torch.bool).triu(1)):
        raise ValueError(f"sparse_mode {mode} takes the triangle above the diagonal as atten_mask; this one differs")


@dataclass(frozen=True)
class Layout:
    """How one axis order becomes [batch, heads, sequence, dim], and back."""

    name: str
    split: Callable[[Tensor, int], Tensor]
    join: Callable[[Tensor], Tensor]


def _rows(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("BNSD", lambda x, heads: x, lambda x: x),
        Layout("BSND", lambda x, heads: x.transpose(1, 2), lambda x: x.transpose(1, 2)),
        Layout("BSH", _rows, lambda x: x.transpose(1, 2).flatten(2)),
        Layout("SBH", lambda x, heads: _rows(x.transpose(0, 1), heads), lambda x: x.permute(2, 0, 1, 3).flatten(2)),
    )
}


def layout_of(name: str) -> Layout:
    """The layout of that name.

    Raises:
        Unsupported: the references have no such layout.
    """
    if name not in LAYOUTS:
        raise Unsupported(f"input_layout {name!r}; the references have {sorted(LAYOUTS)} and TND")
    return LAYOUTS[name]
