"""The choice of experts from logits: sigmoid, groups, top-k, weights, in one vector task for each tile."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from dataclasses import dataclass
from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, sigmoid
from glmfuse.lowering.pypto.tiling import round_up

SMALLEST = 8
"""fp32 elements in a block of the unified buffer: the least tail of a vector tile."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How experts are chosen. rows: tokens of a vector tile."""

    experts: int
    top_k: int
    n_group: int
    topk_group: int
    renormalize: bool
    scale: float
    rows: int

    def choose(self, at: Block, logits: Any, bias: Any, weights: Any, ids: Any) -> None:
        """From logits [size, experts] fp32 to the round's rows of weights fp32 and ids int64 [tokens, top_k]."""
        pypto.set_vec_tile_shapes(self.rows, round_up(self.experts, SMALLEST))
        scores = sigmoid(logits, at.full(1.0, self.experts))
        choice = pypto.add(scores, bias)
        if self.n_group > 1:
            choice = self.in_best_groups(at, choice)
        _, chosen = pypto.topk(choice, self.top_k, -1, True)
        taken = pypto.gather(scores, 1, chosen)
        pypto.set_vec_tile_shapes(self.rows, round_up(self.top_k, SMALLEST))
        if self.renormalize:
            taken = pypto.div(taken, pypto.add(pypto.sum(taken, -1, True), 1e-20))
        at.put(pypto.mul(taken, self.scale), weights, 0)
        at.put(pypto.cast(chosen, pypto.DT_INT64), ids, 0)

    def in_best_groups(self, at: Block, choice: Any) -> Any:
        """Scores, -inf outside the groups whose two best have the largest sums."""
        groups, unit = self.n_group, self.experts // self.n_group
        by_group = at.sizes(groups, unit)
        grouped = pypto.reshape(choice, [at.size, groups, unit], valid_shape=by_group)
        pypto.set_vec_tile_shapes(self.rows, groups, round_up(unit, SMALLEST))
        best, _ = pypto.topk(grouped, 2, -1, True)
        pypto.set_vec_tile_shapes(self.rows, groups, SMALLEST)
        sums = pypto.sum(best, -1, False)
        pypto.set_vec_tile_shapes(self.rows, round_up(groups, SMALLEST))
        _, chosen = pypto.topk(sums, self.topk_group, -1, True)
        mask = pypto.unsqueeze(pypto.scatter_(at.full(0.0, groups), 1, chosen, 1.0), -1)
        pypto.set_vec_tile_shapes(self.rows, groups, round_up(unit, SMALLEST))
        spread = pypto.expand_clone(mask, [at.size, groups, unit], valid_shape=by_group)
        spread = pypto.reshape(spread, [at.size, self.experts], valid_shape=at.sizes(self.experts))
        pypto.set_vec_tile_shapes(self.rows, round_up(self.experts, SMALLEST))
        return pypto.where(pypto.logical_not(spread), float("-inf"), choice)


def build(
    experts: int, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float, block: int, rows: int
) -> Any:
    """The kernel of `route_topk`.

    logits [tokens, experts] fp32, bias [1, experts] fp32 -> weights [tokens, top_k] fp32, ids [tokens, top_k]
    int64. block: tokens of a round. rows: tokens of a vector tile.
    """
    choice = Choice(experts, top_k, n_group, topk_group, renormalize, scale, rows)

    @pypto.frontend.jit()
    def route_topk(
        logits: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        bias: pypto.Tensor([], pypto.DT_FP32),
        weights: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ids: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT64),
    ):
        tokens = logits.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            at = Block(block, i, tokens)
            choice.choose(at, at.of(logits, experts), bias, weights, ids)

    return route_topk
