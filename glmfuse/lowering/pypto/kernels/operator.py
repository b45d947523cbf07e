"""One aten operator as a kernel of its own: what a fused kernel is timed against, never run for its numbers."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.vector import Block, scope, widened


def build(
    kind: str, width: int, out: int, spread: bool, block: int, rows: int, columns: int, dtypes: tuple[str, ...]
) -> Any:
    """A kernel that reads its operands, does one vector operator and writes: x [rows, width] -> y [rows, out].

    kind: "map" (one operand), "zip" (two; spread: the second is one row), "reduce" (over the last axis) or
    "topk". block: rows of a round. rows, columns: the vector tile. dtypes: of the operands, then the result.
    """
    elements = [getattr(pypto, dtype) for dtype in dtypes]

    def computed(at: Block, x: Any, z: Any) -> Any:
        wide = widened(at.of(x, width))
        if kind == "map":
            return pypto.mul(wide, 1.0)
        if kind == "zip":
            return pypto.add(wide, widened(z if spread else at.of(z, width)))
        if kind == "reduce":
            return pypto.sum(wide, -1, True)
        values, _ = pypto.topk(wide, out, -1, True)
        return values

    if kind == "zip":

        @pypto.frontend.jit()
        def operator(
            x: pypto.Tensor([pypto.DYNAMIC, ...], elements[0]),
            z: pypto.Tensor([] if spread else [pypto.DYNAMIC, ...], elements[1]),
            y: pypto.Tensor([pypto.DYNAMIC, ...], elements[-1]),
        ):
            count = x.shape[0]
            for i in pypto.loop((count + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, count)
                pypto.set_vec_tile_shapes(rows, columns)
                scope(1)
                at.put(pypto.cast(computed(at, x, z), elements[-1]), y, 0)
                scope(-1)

    else:

        @pypto.frontend.jit()
        def operator(
            x: pypto.Tensor([pypto.DYNAMIC, ...], elements[0]),
            y: pypto.Tensor([pypto.DYNAMIC, ...], elements[-1]),
        ):
            count = x.shape[0]
            for i in pypto.loop((count + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, count)
                pypto.set_vec_tile_shapes(rows, columns)
                scope(1)
                at.put(pypto.cast(computed(at, x, None), elements[-1]), y, 0)
                scope(-1)

    return operator
