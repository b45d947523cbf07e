"""`quant_linear` as a PyPTO kernel: what fused kernels are timed against."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.launch.codes import as_read, is_held, multiplied
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 6
_MOST_ROWS = 8


def _limits(chip: Chip, site: Request) -> str | None:
    scale, w = site.tensors["scale"], site.tensors["w"]
    return first(
        lambda: multiplied(chip, site, "w"),
        lambda: contiguous(site.outputs[0]),
        lambda: f"scale is {scale.dtype}; the kernel reads float32" if scale.dtype != torch.float32 else None,
        lambda: None if scale.shape[0] == w.shape[1] else f"a scale of {scale.shape[0]} for {w.shape[1]} outputs",
    )


def _launch(
    chip: Chip,
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    per_token: Tensor | None,
    quant_bias: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Launch:
    (tokens, inputs), out = x.shape, w.shape[1]
    block, held = tokens_of_round(tokens), is_held(w)
    cube = cube_tile(chip, block, inputs, out, 1)
    kernel = KernelRef.of(
        "glmfuse.lowering.pypto.kernels.quant_linear:build",
        inputs=inputs,
        out=out,
        held=held,
        block=block,
        rows=min(_MOST_ROWS, vector_rows(chip, cube.n, block, _LIVE_ROWS)),
        cube=cube,
        per_token=per_token is not None,
        whole=quant_bias is not None,
        bias=bias is not None,
        dtypes=(DTYPES[dtype], "DT_FP32" if quant_bias is None else "DT_INT32", DTYPES[_bias(scale, bias).dtype]),
    )
    row = scale.view(1, out)  # for what is not there, too
    column = row.view(out, 1) if per_token is None else per_token.view(tokens, 1)
    added = row if quant_bias is None else quant_bias.view(1, out)
    matrices = (x, as_read(w, held=held), row, column, added, _bias(scale, bias).view(1, out))
    return Launch(kernel, matrices, (((tokens, out), dtype),), lambda made: made[0], frozenset({1}))


def _bias(scale: Tensor, bias: Tensor | None) -> Tensor:
    return scale if bias is None else bias


QUANT_LINEAR = PyptoKernel(_limits, _launch)
