"""Logits of the last positions alone: the hidden states are cut before the head, and stay so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glmfuse import Gain, Kernel, Target
from glmfuse.patterns import linear
from tests.support.glm import BATCH, PROMPT, prefill, prefill_static, tiny
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits

LAST: tuple[Any, ...] = (1, 3, torch.tensor([2, 6]))
IDS = ("last", "last three", "picked")


def captured(model: Any, arguments: dict[str, Any]) -> Captured:
    torch._dynamo.reset()
    return capture(model, **arguments)[0]


def kept(logits_to_keep: Any) -> int:
    return logits_to_keep if isinstance(logits_to_keep, int) else len(logits_to_keep)


def flops(module: Any, inputs: list[Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("phase", "dynamic", "dtype"),
    [
        (prefill, False, torch.bfloat16),
        (prefill_static, True, torch.float32),
    ],
)
@pytest.mark.parametrize("last", LAST, ids=IDS)
def test_the_last_norm_fuses_and_the_head_computes_no_more(
    last: Any, dynamic: bool, phase: Any, dtype: torch.dtype
) -> None:
    model = tiny(dtype, num_hidden_layers=2)
    counts = {}
    for name, extra in (("all", {}), ("last", {"logits_to_keep": last})):
        graph = captured(model, {**phase(model, dynamic), **extra})
        module = graph.module()
        report = run_stages(module)
        assert report.count("chosen")["add_rms_norm"] == 1, "the norm before the head"
        expected = outputs_and_writes(graph.module(), graph.arguments())
        assert same_bits(outputs_and_writes(module, graph.arguments()), expected)
        counts[name] = flops(module, graph.arguments())
        assert counts[name] == flops(graph.module(), graph.arguments())
    width, words = model.config.hidden_size, model.config.vocab_size
    assert counts["all"] - counts["last"] == 2 * BATCH * (PROMPT - kept(last)) * width * words


@pytest.mark.parametrize("last", LAST, ids=IDS)
def test_a_kernel_for_the_head_gets_the_last_positions(last: Any) -> None:
    model = tiny(torch.bfloat16, num_hidden_layers=2)
    rows: list[tuple[int, ...]] = []

    def head(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        if w.shape[0] == model.config.vocab_size:
            rows.append(tuple(x.shape))
        return linear.function(x, w, b)

    target = Target("watched", {"linear": Kernel(head, gain_fn=lambda request: Gain(0.0, 1.0, "as given"))})
    graph = captured(model, {**prefill(model), "logits_to_keep": last})
    module = graph.module()
    run_stages(module, targets=(target,))
    rows.clear()
    outputs_and_writes(module, graph.arguments())
    assert rows == [(BATCH, kept(last), model.config.hidden_size)]
