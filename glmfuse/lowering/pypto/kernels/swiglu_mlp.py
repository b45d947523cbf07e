"""Gate and up projections, SwiGLU, down projection, in one launch."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.tiling import CubeTile


def build(
    hidden: int, inter: int, out: int, block: int, rows: int, width: int, wide: CubeTile, narrow: CubeTile,
    merged: bool, dtype: str,
) -> Any:  # fmt: skip
    """The kernel of `swiglu_mlp`: x [tokens, hidden], weights [out, in] -> y [tokens, out].

    merged: gate and up are the halves of one matrix [2 * inter, hidden]. block: tokens of a round. rows,
    width: vector tile of the activation. wide, narrow: cube tiles of the projections up and down.
    """
    element = getattr(pypto, dtype)

    def project(x: Any, weights: list[Any]) -> list[Any]:
        pypto.set_cube_tile_shapes(*wide.arguments())
        return [pypto.matmul(x, weight, element, b_trans=True) for weight in weights]

    def activate(gate: Any, up: Any) -> Any:
        """silu(gate) * up, each rounded as torch rounds them."""
        pypto.set_vec_tile_shapes(rows, width)
        g = pypto.cast(gate, pypto.DT_FP32)
        silu = pypto.div(g, pypto.add(pypto.exp(pypto.mul(g, -1.0)), 1.0))
        silu = pypto.cast(pypto.cast(silu, element), pypto.DT_FP32)
        return pypto.cast(pypto.mul(silu, pypto.cast(up, pypto.DT_FP32)), element)

    def body(x: Any, weights: list[Any], down: Any, y: Any, i: Any, valid: Any) -> None:
        part = pypto.view(x, [block, hidden], [i * block, 0], valid_shape=[valid, hidden])
        products = project(part, weights)
        if merged:
            gate = pypto.view(products[0], [block, inter], [0, 0], valid_shape=[valid, inter])
            up = pypto.view(products[0], [block, inter], [0, inter], valid_shape=[valid, inter])
        else:
            gate, up = products
        active = activate(gate, up)
        pypto.set_cube_tile_shapes(*narrow.arguments())
        pypto.assemble(pypto.matmul(active, down, element, b_trans=True), [i * block, 0], y)

    if merged:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def swiglu_mlp(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w_gate: pypto.Tensor([], element),
            w_down: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                body(x, [w_gate], w_down, y, i, (tokens - i * block).min(block))

    else:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def swiglu_mlp(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w_gate: pypto.Tensor([], element),
            w_up: pypto.Tensor([], element),
            w_down: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                body(x, [w_gate, w_up], w_down, y, i, (tokens - i * block).min(block))

    return swiglu_mlp
