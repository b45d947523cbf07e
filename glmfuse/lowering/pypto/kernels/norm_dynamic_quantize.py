"""(Add,) RMSNorm and the codes of its rows, in one task for each tile: the norm, the sum and the codes are stored."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.kernels.codes import by_largest
from glmfuse.lowering.pypto.kernels.rms_norm import add, normalise
from glmfuse.lowering.pypto.kernels.vector import Block, scope, widened

_CODES = "DT_INT8"


def build(hidden: int, block: int, rows: int, width: int, eps: float, dtype: str, has_residual: bool) -> Any:
    """The kernel of `norm_dynamic_quantize`.

    x, residual [tokens, hidden], w [1, hidden] -> codes [tokens, hidden], scales [tokens, 1] fp32, the norm, and with a
    residual the sum, both [tokens, hidden]. block: tokens of a round. rows, width: the vector tile.
    """
    element = getattr(pypto, dtype)

    def body(at: Block, part: Any, w: Any, outputs: list[Any]) -> None:
        norm = normalise(part, at.spread(w, hidden), hidden, eps, element)
        made, scale = by_largest(at, widened(norm), _CODES)
        for value, output in zip([made, scale, norm], outputs, strict=True):
            at.put(value, output, 0)

    if has_residual:

        @pypto.frontend.jit()
        def norm_dynamic_quantize(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT8),
            scale: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
            norm: pypto.Tensor([pypto.DYNAMIC, ...], element),
            total: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                both = add(at.of(x, hidden), at.of(residual, hidden), element)
                at.put(both, total, 0)
                body(at, both, w, [y, scale, norm])
                scope(-1)

    else:

        @pypto.frontend.jit()
        def norm_dynamic_quantize(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            w: pypto.Tensor([], element),
            y: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_INT8),
            scale: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
            norm: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + block - 1) // block, name="T", idx_name="i"):
                at = Block(block, i, tokens)
                pypto.set_vec_tile_shapes(rows, width)
                scope(1)
                body(at, at.of(x, hidden), w, [y, scale, norm])
                scope(-1)

    return norm_dynamic_quantize
