"""`norm_qkv_rope_w8a8`, `norm_qkv_rope_w8a8_dynamic` and `norm_qkv_rope_fp8_per_token` as PyPTO kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.front import Front, QuantFront
from glmfuse.lowering.pypto.launch.codes import CODES, as_read, is_held, multiplied, scales_fit
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, first, fixed, half, halves, row_fits
from glmfuse.lowering.pypto.launch.norm_qkv_rope import LIVE_ROWS, MOST_HEAD_ROWS, back
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tail, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

_HEADS = "qkv"
_BIASES = {**DTYPES, torch.int32: "DT_INT32"}


def _limits(chip: Chip, site: Request) -> str | None:
    x = site.tensors["x"]
    heads = int(site.scalars["num_heads"]) * int(site.scalars["head_dim"])
    return first(
        lambda: halves(site.scalars["interleaved"]),
        lambda: half(x),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, x.shape[-1], LIVE_ROWS),
        lambda: row_fits(chip, heads, LIVE_ROWS),
        lambda: next((why for name in _HEADS if (why := _weight(chip, site, name)) is not None), None),
        lambda: scales_fit(site, _HEADS),
        lambda: _alike(site, "factor", "offset"),
        lambda: _biases(site),
    )


def _weight(chip: Chip, site: Request, name: str) -> str | None:
    return multiplied(chip, site, f"w_{name}") if f"w_{name}" in site.tensors else None


def _alike(site: Request, one: str, other: str) -> str | None:
    """Whether two tensors that come together have one dtype and one shape, or there are none."""
    a, b = site.tensors.get(one), site.tensors.get(other)
    if a is None or b is None or (a.dtype, a.shape) == (b.dtype, b.shape):
        return None
    return f"{one} is {a.dtype} of {a.shape}, {other} {b.dtype} of {b.shape}; the kernel reads them alike"


def _biases(site: Request) -> str | None:
    """Whether floating biases are stored as x, or in fp32, and all alike."""
    given = [bias for name in _HEADS if (bias := site.tensors.get(f"b_{name}")) is not None]
    taken = (site.tensors["x"].dtype, torch.float32)
    for name, bias in zip(_HEADS, given, strict=False):
        if bias.dtype not in taken:
            return f"dtype {bias.dtype} of b_{name} is none of {taken[0]}, {taken[1]}"
        if bias.dtype != given[0].dtype:
            return f"b_{name} is {bias.dtype}, b_q {given[0].dtype}; the kernel reads them alike"
    return None


def _launch(
    chip: Chip,
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    w_q_norm: Tensor | None,
    w_k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
    factor: Tensor | None = None,
    offset: Tensor | None = None,
    inverse: Tensor | None = None,
    **projections: Any,
) -> Launch:
    """The launch; projections: each w_, s_, and c_ (static scales) or b_, of q, k and v, or None."""
    (batch, length, hidden), counts = x.shape, (num_heads, num_kv_heads, num_kv_heads)
    tokens = batch * length
    added = "b" if factor is None else "c"
    scales, biases = ([projections.get(f"{kind}_{name}") for name in _HEADS] for kind in ("s", added))
    w_q, merged = projections["w_q"], projections.get("w_k") is None
    weights = [w_q] * 3 if merged else [projections[f"w_{name}"] for name in _HEADS]
    held = is_held(*weights)
    plan = QuantFront(
        front=_front(
            chip, tokens, hidden, counts, head_dim, cos.shape[-1], eps, DTYPES[x.dtype],
            has_residual=residual is not None, has_bias=biases[0] is not None,
            has_qk_norm=w_q_norm is not None, merged=merged,
        ),
        codes=CODES[w_q.dtype],
        channels=0 if factor is None else factor.shape[0],
        factor_dtype=DTYPES[x.dtype if factor is None else factor.dtype],
        bias_dtype=_BIASES[x.dtype if biases[0] is None else biases[0].dtype],
        held=held,
    )  # fmt: skip
    nothing = w_norm.view(1, hidden)  # for what this variant does not have, and its kernel does not read
    matrices = [as_read(w, held=held) for w in weights]
    shaped = [[_of_heads(t, table[0], nothing, head_dim) for t in table] for table in (scales, biases)]
    gains = [nothing if gain is None else gain.view(1, 1, head_dim) for gain in (w_q_norm, w_k_norm)]
    moved = [nothing if given is None else given.view(1, -1) for given in (factor, offset)]
    flat = [tensor.reshape(tokens, hidden) for tensor in (x, residual) if tensor is not None]
    angles = [table.expand(batch, 1, length, -1).reshape(tokens, 1, -1) for table in (cos, sin)]
    outputs: list[tuple[tuple[int, ...], torch.dtype]] = [((tokens, count, head_dim), x.dtype) for count in counts]
    if residual is not None:
        outputs.append(((tokens, hidden), x.dtype))
    before = (*flat, nothing, *moved)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.norm_qkv_rope_quant:build", plan=plan)
    inputs = (*before, *matrices, *shaped[0], *shaped[1], *gains, *angles)
    places = frozenset(range(len(before), len(before) + len(matrices)))
    return Launch(kernel, inputs, tuple(outputs), back(x, head_dim), places)


def _of_heads(row: Tensor | None, own: Tensor | None, nothing: Tensor, head_dim: int) -> Tensor:
    """A number for each output as [1, heads, head_dim]; where it is in the first row, that one; else nothing."""
    given = own if row is None else row
    return nothing if given is None else given.view(1, -1, head_dim)


def _front(
    chip: Chip,
    tokens: int,
    hidden: int,
    counts: tuple[int, int, int],
    head_dim: int,
    rotary: int,
    eps: float,
    dtype: str,
    *,
    has_residual: bool,
    has_bias: bool,
    has_qk_norm: bool,
    merged: bool,
) -> Front:
    block = tokens_of_round(tokens)
    tiles = 2 if block > 1 else 1
    width = tail(chip, hidden)
    return Front(
        hidden=hidden,
        heads=counts[0],
        kv_heads=counts[1],
        head_dim=head_dim,
        rotary=rotary,
        eps=eps,
        has_residual=has_residual,
        has_bias=has_bias,
        has_qk_norm=has_qk_norm,
        merged=merged,
        block=block,
        rows=vector_rows(chip, width, block, LIVE_ROWS, tiles=tiles),
        width=width,
        head_rows=min(MOST_HEAD_ROWS, vector_rows(chip, counts[0] * head_dim, block, LIVE_ROWS, tiles=tiles)),
        bias_rows=1,
        cube=cube_tile(chip, block, hidden, sum(counts) * head_dim, 1),
        dtype=dtype,
    )


NORM_QKV_ROPE_QUANT = PyptoKernel(_limits, _launch)
