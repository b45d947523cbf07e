"""`swiglu_mlp_w4a8_dynamic` and `quant_mlp_w4a8_dynamic` as PyPTO kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.feed_forward import FeedForward, PackedFeedForward
from glmfuse.lowering.pypto.launch.codes import UNIT
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, half, row_fits
from glmfuse.lowering.pypto.launch.swiglu_mlp_quant import LIVE_MIDDLE, LIVE_RESULTS, LIVE_ROWS, MOST_ROWS, WIDEST
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, power_below, round_up, tail, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

_BYTES = 16384
"""Bytes that a task takes apart: as fp16 and int32, what of them is there at once fills the unified buffer."""

_COLUMNS = 1280
_WEIGHTS = ("gate", "up", "down")


def _limits(chip: Chip, site: Request) -> str | None:
    x, down = site.tensors["x"], site.tensors["w_down"]
    return first(
        lambda: half(x),
        lambda: contiguous(site.outputs[0]),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, x.shape[-1], LIVE_ROWS),
        lambda: next((why for name in _WEIGHTS if (why := _whole(site, name)) is not None), None),
        lambda: row_fits(chip, down.shape[0], LIVE_MIDDLE),
    )


def _whole(site: Request, name: str) -> str | None:
    """Whether a weight's parts are products that cube cores take: its bytes, and the inputs of each group."""
    w, scale = site.tensors.get(f"w_{name}"), site.tensors.get(f"s_{name}")
    if w is None or scale is None:
        return None
    for size in (*w.shape, scale.shape[0]):
        if (reason := fixed(f"a size of w_{name}", size)) is not None:
            return reason
    rows, columns = (int(size) for size in w.shape)
    unit = UNIT  # of down, even and odd inputs are parts of their own, of half a unit
    depth = rows // int(scale.shape[0])
    if depth % unit != 0:
        return f"groups of {depth} inputs of w_{name} are no multiples of {unit}"
    if columns % (UNIT // 2) != 0:
        return f"{columns} bytes of a row of w_{name} are no multiple of {UNIT // 2}"
    return None


def _launch(
    chip: Chip,
    x: Tensor,
    w_gate: Tensor,
    s_gate: Tensor,
    w_up: Tensor | None,
    s_up: Tensor | None,
    w_down: Tensor,
    s_down: Tensor,
    rows: Tensor | None = None,
    per_token: Tensor | None = None,
) -> Launch:
    packed = _packed(chip, x, rows, w_gate, len(s_gate), w_up, w_down, len(s_down))
    plan = packed.plan
    flat = (x if rows is None else rows).reshape(-1, plan.hidden)
    gate = (_bytes(w_gate), _scales(s_gate))
    up = gate if w_up is None or s_up is None else (_bytes(w_up), _scales(s_up))
    down = (_bytes(w_down).view(plan.inter // 2, plan.out), _scales(s_down))
    scales = s_down.view(1, -1) if per_token is None else per_token.reshape(-1, 1)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.swiglu_mlp_w4:build", packed=packed)
    outputs = (((len(flat), plan.out // 2), x.dtype),) * 2
    shape = (*x.shape[:-1], plan.out)

    def finish(made: tuple[Tensor, ...]) -> Tensor:
        return torch.stack(made, dim=-1).view(shape)

    return Launch(kernel, (flat, scales, *gate, *up, *down), outputs, finish)


def _bytes(w: Tensor) -> Tensor:
    """Two int4 in a signed byte: vector cores convert that to fp16."""
    return w.contiguous().view(torch.int8)


def _scales(scale: Tensor) -> Tensor:
    """[groups, outputs] as [groups, outputs / 2, 2]: even and odd outputs side by side."""
    return scale.contiguous().view(len(scale), -1, 2)


def _packed(
    chip: Chip,
    x: Tensor,
    rows: Tensor | None,
    w_gate: Tensor,
    groups: int,
    w_up: Tensor | None,
    w_down: Tensor,
    down_groups: int,
) -> PackedFeedForward:
    hidden, inter, out = x.shape[-1], w_down.shape[0], 2 * w_down.shape[1]
    block = tokens_of_round(x.numel() // hidden)
    width, middle, wide = tail(chip, hidden), tail(chip, inter // 2, 1), w_gate.shape[1]
    narrow = cube_tile(chip, block, inter // 2 // down_groups, out // 2, 1, widest=WIDEST, whole=True)
    plan = FeedForward(
        hidden=hidden,
        inter=inter,
        out=out,
        merged=w_up is None,
        held=False,
        is_coded=rows is not None,
        block=block,
        rows=vector_rows(chip, width, block, LIVE_ROWS, tiles=2 if block > 1 else 1),
        width=width,
        mid_rows=min(MOST_ROWS, vector_rows(chip, 2 * middle, block, LIVE_MIDDLE)),
        mid_width=middle,
        out_rows=min(MOST_ROWS, vector_rows(chip, narrow.n, block, LIVE_RESULTS + 2)),
        wide=cube_tile(chip, block, hidden // groups, wide, 1),
        narrow=narrow,
        codes="DT_INT8",
        dtype=DTYPES[x.dtype],
    )
    return PackedFeedForward(plan, groups, down_groups, _unpack(hidden, wide), _unpack(inter // 2, out))


def _unpack(rows: int, columns: int) -> tuple[int, int]:
    """The vector tile that takes a matrix of bytes apart."""
    width = min(round_up(columns, UNIT), _COLUMNS)
    return max(1, min(power_below(_BYTES // width), rows)), width


SWIGLU_MLP_W4 = PyptoKernel(_limits, _launch)
