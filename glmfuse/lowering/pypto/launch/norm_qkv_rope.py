"""`norm_qkv_rope` as a PyPTO kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.front import Front
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, first, fixed, half, row_fits
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tail, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

_LIVE_ROWS = 4
"""fp32 rows in the unified buffer at once, of hidden and of all heads; more spill (measured)."""

_MOST_HEAD_ROWS = 8


def _limits(chip: Chip, site: Request) -> str | None:
    x = site.tensors["x"]
    return first(
        lambda: half(x),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, x.shape[-1], _LIVE_ROWS),
        lambda: row_fits(chip, _rotated_width(site), _LIVE_ROWS),
    )


def _rotated_width(site: Request) -> int:
    heads: int = site.scalars["num_heads"] + site.scalars["num_kv_heads"]
    return heads * int(site.scalars["head_dim"])


def _launch(
    chip: Chip,
    x: Tensor,
    residual: Tensor | None,
    w_norm: Tensor,
    w_q: Tensor,
    w_k: Tensor | None,
    w_v: Tensor | None,
    b_q: Tensor | None,
    b_k: Tensor | None,
    b_v: Tensor | None,
    w_q_norm: Tensor | None,
    w_k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> Launch:
    batch, length, hidden = x.shape
    tokens = batch * length
    counts = (num_heads, num_kv_heads, num_kv_heads)
    block = tokens_of_round(tokens)
    tiles = 2 if block > 1 else 1
    width = tail(chip, hidden)
    head_rows = vector_rows(chip, (num_heads + num_kv_heads) * head_dim, block, _LIVE_ROWS, tiles=tiles)
    front = Front(
        hidden=hidden,
        heads=num_heads,
        kv_heads=num_kv_heads,
        head_dim=head_dim,
        rotary=cos.shape[-1],
        eps=eps,
        has_residual=residual is not None,
        has_bias=b_q is not None,
        has_qk_norm=w_q_norm is not None,
        merged=w_k is None,
        block=block,
        rows=vector_rows(chip, width, block, _LIVE_ROWS, tiles=tiles),
        width=width,
        head_rows=min(_MOST_HEAD_ROWS, head_rows),
        bias_rows=vector_rows(chip, sum(counts) * head_dim, block, 2),
        cube=cube_tile(chip, block, hidden, sum(counts) * head_dim, x.element_size(), slices=2),
        dtype=DTYPES[x.dtype],
    )
    bias = _bias((b_q, b_k, b_v), counts, head_dim, merged=w_k is None)
    gains = _gains(((w_q_norm, num_heads), (w_k_norm, num_kv_heads)), head_dim)
    weights = [w_q if weight is None else weight for weight in (w_q, w_k, w_v)]
    flat = [tensor.reshape(tokens, hidden) for tensor in (x, residual) if tensor is not None]
    angles = [table.expand(batch, 1, length, -1).reshape(tokens, 1, -1) for table in (cos, sin)]
    outputs: list[tuple[tuple[int, ...], torch.dtype]] = [((tokens, count, head_dim), x.dtype) for count in counts]
    if residual is not None:
        outputs.append(((tokens, hidden), x.dtype))

    def finish(made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        q, k, v = (heads.view(batch, length, -1, head_dim).transpose(1, 2) for heads in made[:3])
        return (q.contiguous(), k.contiguous(), v, *(total.view(x.shape) for total in made[3:]))

    inputs = (*flat, w_norm.to(torch.float32).view(1, hidden), *weights, bias, gains, *angles)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.norm_qkv_rope:build", front=front)
    return Launch(kernel, inputs, tuple(outputs), finish)


def _bias(given: Sequence[Tensor | None], counts: Sequence[int], head_dim: int, *, merged: bool) -> Tensor:
    """The bias of all projections as fp32 [1, width], zeros where one has none."""
    if given[0] is None:
        return _nothing()
    if merged:
        return given[0].to(torch.float32).view(1, -1)
    parts = [
        torch.zeros(count * head_dim) if part is None else part.to(torch.float32)
        for part, count in zip(given, counts, strict=True)
    ]
    return torch.cat(parts).view(1, -1)


def _gains(given: Sequence[tuple[Tensor | None, int]], head_dim: int) -> Tensor:
    """The norms' weights as fp32 [1, heads + kv_heads, head_dim]: PyPTO broadcasts along one axis only."""
    spread = [gain.to(torch.float32).view(1, 1, head_dim).expand(1, n, -1) for gain, n in given if gain is not None]
    return torch.cat(spread, dim=1) if spread else _nothing()


def _nothing() -> Tensor:
    return torch.zeros(1, 8)


NORM_QKV_ROPE = PyptoKernel(_limits, _launch)
