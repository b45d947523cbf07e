"""`norm_qkv_rope` as a PyPTO kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.front import Front
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, first, fixed, half, halves, row_fits
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, tail, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

LIVE_ROWS = 4
"""fp32 rows in the unified buffer at once, of hidden and of all heads; more spill (measured)."""

MOST_HEAD_ROWS = 8


def _limits(chip: Chip, site: Request) -> str | None:
    x = site.tensors["x"]
    return first(
        lambda: halves(site.scalars["interleaved"]),
        lambda: half(x),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, x.shape[-1], LIVE_ROWS),
        lambda: row_fits(chip, _rotated_width(site), LIVE_ROWS),
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
    interleaved: bool,
) -> Launch:
    batch, length, hidden = x.shape
    tokens = batch * length
    counts = (num_heads, num_kv_heads, num_kv_heads)
    block = tokens_of_round(tokens)
    tiles = 2 if block > 1 else 1
    width = tail(chip, hidden)
    head_rows = vector_rows(chip, (num_heads + num_kv_heads) * head_dim, block, LIVE_ROWS, tiles=tiles)
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
        rows=vector_rows(chip, width, block, LIVE_ROWS, tiles=tiles),
        width=width,
        head_rows=min(MOST_HEAD_ROWS, head_rows),
        bias_rows=vector_rows(chip, sum(counts) * head_dim, block, 2),
        cube=cube_tile(chip, block, hidden, sum(counts) * head_dim, x.element_size(), slices=2),
        dtype=DTYPES[x.dtype],
    )
    nothing = w_norm.view(1, hidden)  # for what this variant does not have, and its kernel does not read
    weights = [w_q if weight is None else weight for weight in (w_q, w_k, w_v)]
    biases = [nothing if bias is None else bias.view(1, -1) for bias in (b_q, b_k, b_v)]
    gains = [nothing if gain is None else gain.view(1, 1, head_dim) for gain in (w_q_norm, w_k_norm)]
    flat = [tensor.reshape(tokens, hidden) for tensor in (x, residual) if tensor is not None]
    angles = [table.expand(batch, 1, length, -1).reshape(tokens, 1, -1) for table in (cos, sin)]
    outputs: list[tuple[tuple[int, ...], torch.dtype]] = [((tokens, count, head_dim), x.dtype) for count in counts]
    if residual is not None:
        outputs.append(((tokens, hidden), x.dtype))

    inputs = (*flat, w_norm.view(1, hidden), *weights, *biases, *gains, *angles)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.norm_qkv_rope:build", front=front)
    first = len(flat) + 1
    matrices = frozenset(range(first, first + len(weights)))
    return Launch(kernel, inputs, tuple(outputs), back(x, head_dim), matrices)


def back(x: Tensor, head_dim: int) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """From [tokens, heads, head_dim] of q, k and v, and the sum, to the pattern's outputs."""
    batch, length, _ = x.shape

    def finish(made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        q, k, v = (heads.view(batch, length, -1, head_dim).transpose(1, 2) for heads in made[:3])
        return (q.contiguous(), k.contiguous(), v, *(total.view(x.shape) for total in made[3:]))

    return finish


NORM_QKV_ROPE = PyptoKernel(_limits, _launch)
