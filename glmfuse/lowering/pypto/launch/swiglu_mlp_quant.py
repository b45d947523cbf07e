"""`swiglu_mlp_*` and `quant_mlp_*` in int8 and float8 as PyPTO kernels."""

from __future__ import annotations

from torch import Tensor

from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.feed_forward import FeedForward
from glmfuse.lowering.pypto.launch.codes import CODES, as_read, is_held, multiplied, scales_fit
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel
from glmfuse.lowering.pypto.launch.limits import DTYPES, contiguous, first, fixed, half, row_fits
from glmfuse.lowering.pypto.process import KernelRef
from glmfuse.lowering.pypto.tiling import cube_tile, round_up, tail, tokens_of_round, vector_rows
from glmfuse.matching.select import Request

LIVE_ROWS = 4
"""fp32 rows of hidden at once; more spill (measured)."""

LIVE_MIDDLE = 8
"""fp32 rows of the activation at once, gate and up counted each."""

LIVE_RESULTS = 4
MOST_ROWS = 32

WIDEST = 640
"""Outputs of a down projection's task. Fewer, wider tasks take longer than the releases that they save (measured)."""


def limits(chip: Chip, site: Request) -> str | None:
    """Why the shared expert's kernel does not take a site, or None."""
    x, outputs = site.tensors["x"], [output for output in site.outputs if output.dtype == site.tensors["x"].dtype]
    return first(
        lambda: half(x),
        lambda: next((why for output in outputs if (why := contiguous(output)) is not None), None),
        lambda: fixed("hidden", x.shape[-1]),
        lambda: row_fits(chip, x.shape[-1], LIVE_ROWS),
        lambda: next((why for name in _weights(site) if (why := multiplied(chip, site, name)) is not None), None),
        lambda: row_fits(chip, site.tensors["w_down"].shape[0], LIVE_MIDDLE),
        lambda: scales_fit(site, ("gate", "up", "down")),
    )


def _weights(site: Request) -> list[str]:
    return [name for name in ("w_gate", "w_up", "w_down") if name in site.tensors]


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
    plan = feed_forward_of(chip, x, rows, w_gate, w_up, w_down)
    kernel = KernelRef.of("glmfuse.lowering.pypto.kernels.swiglu_mlp_quant:build", plan=plan)
    inputs = inputs_of(plan, x, rows, per_token, (w_gate, s_gate), (w_up, s_up), (w_down, s_down))
    shape = (*x.shape[:-1], plan.out)
    outputs = (((len(inputs[0]), plan.out), x.dtype),)
    return Launch(kernel, inputs, outputs, lambda made: made[0].view(shape), frozenset(WEIGHTS))


WEIGHTS = (2, 4, 6)
"""Places of the weights among `inputs_of`."""


def inputs_of(
    plan: FeedForward,
    x: Tensor,
    rows: Tensor | None,
    per_token: Tensor | None,
    *layers: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, ...]:
    """Rows with their scales, then each weight as the kernel reads it, with its scales as one row.

    The last layer stands in for what is not there.
    """
    w_last, s_last = layers[-1]
    flat = (x if rows is None else rows).reshape(-1, plan.hidden)
    held = [(w_last if w is None else w, s_last if s is None else s) for w, s in layers]
    read = [part for w, s in held if w is not None and s is not None for part in (as_read(w, held=plan.held), _row(s))]
    return flat, read[-1] if per_token is None else per_token.reshape(-1, 1), *read


def _row(scales: Tensor) -> Tensor:
    return scales.view(1, -1)


def feed_forward_of(
    chip: Chip, x: Tensor, rows: Tensor | None, w_gate: Tensor, w_up: Tensor | None, w_down: Tensor
) -> FeedForward:
    """What the kernel is built for, from the arguments of the pattern."""
    hidden, (inter, out) = x.shape[-1], w_down.shape
    block = tokens_of_round(x.numel() // hidden)
    width, both = tail(chip, hidden), w_gate.shape[1]
    narrow = cube_tile(chip, block, inter, out, 1, widest=WIDEST, whole=True)
    middle = tail(chip, inter, 1)
    return FeedForward(
        hidden=hidden,
        inter=inter,
        out=out,
        merged=w_up is None,
        held=is_held(*(w for w in (w_gate, w_up, w_down) if w is not None)),
        is_coded=rows is not None,
        block=block,
        rows=vector_rows(chip, width, block, LIVE_ROWS, tiles=_row_tasks(chip, block)),
        width=width,
        mid_rows=min(MOST_ROWS, vector_rows(chip, middle, block, LIVE_MIDDLE)),
        mid_width=middle,
        out_rows=min(MOST_ROWS, vector_rows(chip, round_up(narrow.n, 8), block, LIVE_RESULTS)),
        wide=cube_tile(chip, block, hidden, both, 1),
        narrow=narrow,
        codes=CODES[w_gate.dtype],
        dtype=DTYPES[x.dtype],
    )


def _row_tasks(chip: Chip, block: int) -> int:
    """Tasks that make codes of x, at least: one for each row, where there are neither few rows nor more than cores.

    Beside tasks of two rows, in us: 0.6 to 2.5 less from 8 to 32 tokens, 1.3 to 1.9 more at 2, 0.5 at 128 (measured).
    """
    return block if 4 < block <= chip.vector_cores else min(block, 2)


SWIGLU_MLP_QUANT = PyptoKernel(limits, _launch)
