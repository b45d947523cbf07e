"""The router: logits in fp32, sigmoid, the choice of groups and experts, weights."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.tiling import CubeTile, round_up

_SMALLEST = 8
"""fp32 elements in a block of the unified buffer: the least tail of a vector tile."""


def build(
    hidden: int, experts: int, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float,
    block: int, rows: int, cube: CubeTile, dtype: str,
) -> Any:  # fmt: skip
    """The kernel of `gate_topk`.

    x [tokens, hidden], w [experts, hidden], bias [1, experts] fp32 -> weights [tokens, top_k] fp32, ids
    [tokens, top_k] int32. A product of bf16 or fp16 operands is exact in fp32, so the matrix product
    reads x and w as they are stored: the sum is the one of the pattern, which casts both first.
    """
    element = getattr(pypto, dtype)
    unit = experts // n_group

    def project(x: Any, w: Any, i: Any, valid: Any) -> Any:
        """The logits: the products of slices along hidden, summed."""
        depth = hidden // cube.slices
        pypto.set_cube_tile_shapes(*cube.arguments())
        if cube.slices == 1:
            part = pypto.view(x, [block, hidden], [i * block, 0], valid_shape=[valid, hidden])
            return pypto.matmul(part, w, pypto.DT_FP32, b_trans=True)
        products = pypto.tensor([cube.slices * block, experts], pypto.DT_FP32, "products")
        for index in range(cube.slices):
            left = pypto.view(x, [block, depth], [i * block, index * depth], valid_shape=[valid, depth])
            right = pypto.view(w, [experts, depth], [0, index * depth])
            pypto.assemble(pypto.matmul(left, right, pypto.DT_FP32, b_trans=True), [index * block, 0], products)
        stacked = pypto.reshape(products, [cube.slices, block, experts], inplace=True)
        pypto.set_vec_tile_shapes(cube.slices, rows, round_up(experts, _SMALLEST))
        return pypto.view(pypto.sum(stacked, 0), [block, experts], [0, 0], valid_shape=[valid, experts])

    def fill(shape: list[int], value: float, valid: list[Any]) -> Any:
        return pypto.full(shape, value, pypto.DT_FP32, valid_shape=valid)

    def sigmoid(logits: Any, valid: Any) -> Any:
        """pypto.sigmoid ignores valid_shape."""
        below = pypto.add(pypto.exp(pypto.mul(logits, -1.0)), 1.0)
        return pypto.div(fill([block, experts], 1.0, [valid, experts]), below)

    def keep_best_groups(choice: Any, valid: Any) -> Any:
        grouped = pypto.reshape(choice, [block, n_group, unit], valid_shape=[valid, n_group, unit])
        pypto.set_vec_tile_shapes(rows, n_group, round_up(unit, _SMALLEST))
        best, _ = pypto.topk(grouped, 2, -1, True)
        pypto.set_vec_tile_shapes(rows, n_group, _SMALLEST)
        scores = pypto.sum(best, -1, False)
        pypto.set_vec_tile_shapes(rows, round_up(n_group, _SMALLEST))
        _, chosen = pypto.topk(scores, topk_group, -1, True)
        mask = pypto.scatter_(fill([block, n_group], 0.0, [valid, n_group]), 1, chosen, 1.0)
        mask = pypto.unsqueeze(mask, -1)
        pypto.set_vec_tile_shapes(rows, n_group, round_up(unit, _SMALLEST))
        spread = pypto.expand_clone(mask, [block, n_group, unit], valid_shape=[valid, n_group, unit])
        spread = pypto.reshape(spread, [block, experts], valid_shape=[valid, experts])
        pypto.set_vec_tile_shapes(rows, round_up(experts, _SMALLEST))
        return pypto.where(pypto.logical_not(spread), float("-inf"), choice)

    def body(x: Any, w: Any, bias: Any, weights: Any, ids: Any, i: Any, valid: Any) -> None:
        logits = project(x, w, i, valid)
        pypto.set_vec_tile_shapes(rows, round_up(experts, _SMALLEST))
        scores = sigmoid(logits, valid)
        choice = pypto.add(scores, bias)
        if n_group > 1:
            choice = keep_best_groups(choice, valid)
        _, chosen = pypto.topk(choice, top_k, -1, True)
        taken = pypto.gather(scores, 1, chosen)
        pypto.set_vec_tile_shapes(rows, round_up(top_k, _SMALLEST))
        if renormalize:
            taken = pypto.div(taken, pypto.add(pypto.sum(taken, -1, True), 1e-20))
        pypto.assemble(pypto.mul(taken, scale), [i * block, 0], weights)
        pypto.assemble(chosen, [i * block, 0], ids)

    @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
    def gate_topk(
        x: pypto.Tensor([pypto.DYNAMIC, ...], element),
        w: pypto.Tensor([], element),
        bias: pypto.Tensor([], pypto.DT_FP32),
        weights: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        ids: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT32),
    ):
        tokens = x.shape[0]
        for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
            body(x, w, bias, weights, ids, i, (tokens - i * block).min(block))

    return gate_topk
