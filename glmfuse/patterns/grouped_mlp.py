"""The routed experts of a mixture: dispatch, gated feed-forward of each expert, weighted combine."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.matching.register import pattern, spelling_of
from glmfuse.patterns.grouped_mm import grouped_mm
from glmfuse.patterns.swiglu import swiglu

_SIZES = ({"H": 40, "I": 24}, {"H": 56, "I": 32})
"""grouped_mm takes rows of whole 16 bytes."""

_DIMS = {"x": "B S H", "weights": "B*S A", "ids": "B*S A", "w_gate_up": "E 2*I H", "w_down": "E H I"}
_CASES: tuple[dict[str, int], ...] = ({}, {"S": 1})
"""[batch, 1, hidden] already has the shape that bmm's copies of a row are made from."""

_DTYPES = {"weights": torch.float32, "ids": torch.int64}


def _batched(rows: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Weighted outputs of every choice, [tokens * active, hidden]: each row times a copy of its weights."""
    experts = ids.reshape(-1)
    hidden = torch.bmm(take(w_gate_up, experts), rows.unsqueeze(-1)).squeeze(-1)
    outputs = torch.bmm(take(w_down, experts), swiglu(hidden, None).unsqueeze(-1)).squeeze(-1)
    return outputs * weights.reshape(-1).unsqueeze(-1)


def _grouped(rows: Tensor, weights: Tensor, experts: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """The same of rows sorted by expert, multiplied in groups."""
    ends = _ends_of_groups(experts, w_gate_up.shape[0])
    hidden = swiglu(grouped_mm(rows, w_gate_up.transpose(-2, -1), ends), None)
    return grouped_mm(hidden, w_down.transpose(-2, -1), ends) * weights


def _ends_of_groups(experts: Tensor, count: int) -> Tensor:
    """How many rows have an expert up to each; histc takes integers on a GPU, and floats alone on a CPU."""
    countable = experts.float() if experts.device.type in ("cpu", "mps") else experts.int()
    return torch.histc(countable, bins=count, min=0, max=count - 1).cumsum(0, dtype=torch.int32)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; Python's brackets need the device's library, which the trace for a GPU has to do without."""
    taken: Tensor = torch.ops.aten.index.Tensor(x, [rows])
    return taken


def _tokens(ids: Tensor) -> Tensor:
    """The token of every choice, [tokens * active]."""
    tokens = torch.arange(ids.shape[0], device=ids.device)
    return tokens.unsqueeze(1).expand(-1, ids.shape[1]).reshape(-1)


def _places(order: Tensor) -> Tensor:
    """Where each choice went when they were put in this order."""
    return torch.empty_like(order).index_put((order,), torch.arange(order.shape[0], device=order.device))


def combined(outputs: Tensor, x: Tensor, ids: Tensor) -> Tensor:
    """The sum over the choices of each token, in x's dtype and shape."""
    return outputs.view(*ids.shape, x.shape[-1]).sum(dim=1).to(x.dtype).view(x.shape)


@pattern(dims=_DIMS, examples=_SIZES, cases=_CASES, dtypes=_DTYPES)
def grouped_mlp(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """The sum over a of weights[t, a] * down(silu(gate(x)) * up(x)), by the weights of expert ids[t, a].

    x [batch, tokens, hidden], weights [batch * tokens, active] fp32, ids [batch * tokens, active] int64 below
    experts, w_gate_up [experts, 2 * width, hidden] gate first, w_down [experts, hidden, width] -> x's shape.
    The weighted sum is fp32, rounded once. Source: DeepSeek-V3 report, equation 12;
    grouped_mm_experts_forward of transformers.
    """
    experts, order = torch.sort(ids.reshape(-1))
    rows = take(x.view(-1, x.shape[-1]), order // ids.shape[-1])
    outputs = _grouped(rows, take(weights.reshape(-1), order).unsqueeze(-1), experts, w_gate_up, w_down)
    return combined(take(outputs, _places(order)), x, ids)


@spelling_of(grouped_mlp)
def batched_mm(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """The same by bmm with gathered weights.  Source: batched_mm_experts_forward of transformers."""
    rows = x.view(-1, x.shape[-1]).repeat_interleave(ids.shape[-1], dim=0)
    return combined(_batched(rows, weights, ids, w_gate_up, w_down), x, ids)


@spelling_of(grouped_mlp)
def batched_mm_5_0(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """By bmm, with rows taken by token.  Source: batched_mm_experts_forward of transformers 5.0 to 5.5."""
    rows = take(x.view(-1, x.shape[-1]), _tokens(ids))
    return combined(_batched(rows, weights, ids, w_gate_up, w_down), x, ids)


@spelling_of(grouped_mlp)
def grouped_mm_5_0(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """In groups, sorted there and back.  Source: grouped_mm_experts_forward of transformers 5.0."""
    choices = ids.reshape(-1)
    order = torch.sort(choices)[1]
    rows = take(take(x.view(-1, x.shape[-1]), _tokens(ids)), order)
    outputs = _grouped(rows, take(weights.reshape(-1, 1), order), take(choices, order), w_gate_up, w_down)
    return combined(take(outputs, torch.sort(order)[1]), x, ids)


@spelling_of(grouped_mlp)
def grouped_mm_5_5(x: Tensor, weights: Tensor, ids: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """In groups, with rows taken by token.  Source: grouped_mm_experts_forward of transformers 5.5."""
    choices = ids.reshape(-1)
    order = torch.sort(choices)[1]
    rows = take(x.view(-1, x.shape[-1]), take(_tokens(ids), order))
    chosen = take(weights.reshape(-1), order).unsqueeze(-1)
    outputs = _grouped(rows, chosen, take(choices, order), w_gate_up, w_down)
    return combined(take(outputs, _places(order)), x, ids)
