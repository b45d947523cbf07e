"""Multi-token prediction: the layer's entry is one block, in transformers' form and in vLLM's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import MtpModel

from glmfuse import Report
from glmfuse.report.report import GraphReport
from tests.support.glm import DTYPES, PROMPT, tiny
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.mtp import TokenMajorHead, arguments, mtp_of, with_checkpoint
from tests.support.mutate import mutate, mutations
from tests.test_mutants import MEANS_THE_SAME

LAYER = ("mtp_head", "norm_qkv_rope", "linear_add_rms_norm", "moe", "add_rms_norm")
"""The blocks of one layer: its entry, its decoder layer, and the norm before the shared head."""

CALLS = {
    "prompt": {"tokens": 6},
    "prompt, dynamic": {"tokens": 6, "dynamic": True},
    "one token": {"tokens": 1, "cached": 6},
    "two tokens": {"tokens": 2, "cached": 6},
}


def check_fused(captured: Captured) -> GraphReport:
    """Fuse a copy; no bit may change."""
    module = captured.module()
    report = run_stages(module)
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)
    return report


@pytest.mark.parametrize(
    ("call", "experts", "dtype"),
    [
        *itertools.product(CALLS, ["grouped_mm", "batched_mm"], [torch.bfloat16]),
        *itertools.product(["one token"], ["grouped_mm"], [torch.float32, torch.float16]),
    ],
    ids=str,
)
def test_a_layer_fuses_whole_and_no_bit_changes(call: str, experts: str, dtype: torch.dtype) -> None:
    mtp = mtp_of(tiny(dtype, experts=experts))
    (captured,) = capture(mtp, **arguments(mtp, **CALLS[call]))
    report = check_fused(captured)
    chosen = report.count("chosen")
    assert {name: chosen[name] for name in LAYER} == dict.fromkeys(LAYER, 1)
    assert not [row for row in report.rows() if not row.is_site]


def test_every_layer_has_an_entry_of_its_own() -> None:
    mtp = mtp_of(tiny(torch.bfloat16, num_mtp_layers=2), layers=2)
    (captured,) = capture(mtp, **arguments(mtp, 6))
    chosen = check_fused(captured).count("chosen")
    assert {name: chosen[name] for name in LAYER} == dict.fromkeys(LAYER, 2)


def test_a_layer_may_return_its_sum_before_any_norm() -> None:
    """As vLLM's does; transformers knows it by a field of the config."""
    mtp = mtp_of(tiny(torch.bfloat16, chain_hidden_post_norm=False))
    (captured,) = capture(mtp, **arguments(mtp, 6))
    chosen = check_fused(captured).count("chosen")
    assert {name: chosen[name] for name in LAYER} == {**dict.fromkeys(LAYER, 1), "add_rms_norm": 0}


def test_generation_with_drafts_gives_eagers_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes the MtpModel inside generate, so that its class is what can be compiled."""
    model = with_checkpoint(tiny(torch.float32, num_hidden_layers=2), tmp_path)
    prompt = torch.randint(0, 256, (1, PROMPT))
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(prompt, use_mtp=True, **settings)
    assert torch.equal(expected, model.generate(prompt, **settings))
    reports = {"model": Report(), "mtp": Report()}
    options = {name: {"engine": "eager", "report": report} for name, report in reports.items()}
    model.compile(backend="glmfuse", options=options["model"])
    compiled = torch.compile(MtpModel.forward, backend="glmfuse", fullgraph=True, options=options["mtp"])
    monkeypatch.setattr(MtpModel, "forward", compiled)
    assert torch.equal(model.generate(prompt, use_mtp=True, **settings), expected)
    for name, layers in (("model", 2), ("mtp", 1)):
        assert reports[name].graphs
        for graph in reports[name].graphs:
            assert graph.count("chosen")["norm_qkv_rope"] == layers
            assert graph.count("chosen")["mtp_head"] == (name == "mtp")


def tokens(*lead: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Positions from 0 on, embeddings and hidden states of a batch of tokens."""
    positions = torch.arange(lead[-1]).expand(lead).contiguous()
    return positions, torch.randn(*lead, 64).to(dtype), torch.randn(*lead, 64).to(dtype)


def variants_chosen(report: GraphReport) -> list[str]:
    return [row.variant for row in report.rows() if row.pattern == "mtp_head" and row.status == "chosen"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lead", [(5,), (1,), (2, 5)], ids=str)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_positions_that_mask_the_embedding_are_an_argument(
    lead: tuple[int, ...], dtype: torch.dtype, dynamic: bool
) -> None:
    head, given = TokenMajorHead(dtype=dtype), tokens(*lead, dtype=dtype)
    if dynamic and lead[0] > 1:
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 0)
    (captured,) = capture(head, *given)
    assert variants_chosen(check_fused(captured)) == ["full"]


class PositionOne(TokenMajorHead):
    """Masks another position."""

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        embeds = torch.where(positions.unsqueeze(-1) == 1, 0, embeds)
        return self.eh_proj(torch.cat([self.enorm(embeds), self.hnorm(hidden)], dim=-1))


class HiddenMasked(TokenMajorHead):
    """Masks the hidden state."""

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        hidden = torch.where(positions.unsqueeze(-1) == 0, 0, hidden)
        return self.eh_proj(torch.cat([self.enorm(embeds), self.hnorm(hidden)], dim=-1))


class HiddenFirst(TokenMajorHead):
    """Joins them the other way round, as other models of transformers do."""

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        embeds = torch.where(positions.unsqueeze(-1) == 0, 0, embeds)
        return self.eh_proj(torch.cat([self.hnorm(hidden), self.enorm(embeds)], dim=-1))


class MaskReadTwice(TokenMajorHead):
    """Returns the masked embedding too."""

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        embeds = torch.where(positions.unsqueeze(-1) == 0, 0, embeds)
        return self.eh_proj(torch.cat([self.enorm(embeds), self.hnorm(hidden)], dim=-1)), embeds


class WithBias(TokenMajorHead):
    """Projects with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.eh_proj.bias = torch.nn.Parameter(torch.randn(64))


class TwoEps(TokenMajorHead):
    """Has an eps for each norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hnorm.variance_epsilon = 1e-6


class MaskedAfterNorm(TokenMajorHead):
    """Masks what the norm gives."""

    def forward(self, positions: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        normed = torch.where(positions.unsqueeze(-1) == 0, 0, self.enorm(embeds))
        return self.eh_proj(torch.cat([normed, self.hnorm(hidden)], dim=-1))


@pytest.mark.parametrize("kind", [PositionOne, HiddenMasked, HiddenFirst, MaskReadTwice])
def test_a_mask_of_another_kind_stays_before_the_block(kind: Callable[[], TokenMajorHead]) -> None:
    (captured,) = capture(kind(), *tokens(5))
    assert variants_chosen(check_fused(captured)) == ["no positions"]


@pytest.mark.parametrize("kind", [WithBias, TwoEps, MaskedAfterNorm])
def test_another_function_is_not_taken(kind: Callable[[], TokenMajorHead]) -> None:
    (captured,) = capture(kind(), *tokens(5))
    assert not variants_chosen(check_fused(captured))


def test_a_near_miss_names_the_second_eps() -> None:
    (captured,) = capture(TwoEps(), *tokens(5))
    misses = [row for row in check_fused(captured).rows() if row.pattern == "mtp_head" and not row.is_site]
    assert any("eps, the same everywhere" in row.expected and "1e-0" in row.found for row in misses), misses


SWAPPED = "operand order of aten.cat.default"
"""Joined the other way round, each half takes the other's part; the mask then stays before the block."""


def mutants(captured: Captured) -> Iterator[tuple[Any, Any]]:
    owned = run_stages(captured.module()).bodies[0].owner
    for mutation in mutations(captured.graph_module.graph, owned):
        if (mutant := mutate(captured, mutation)) is not None:
            yield mutation, mutant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mutant_is_never_mistaken(dtype: torch.dtype) -> None:
    (captured,) = capture(TokenMajorHead(dtype=dtype), *tokens(5, dtype=dtype))
    tried = 0
    for mutation, mutant in mutants(captured):
        expected = outputs_and_writes(mutant, captured.arguments())
        report = run_stages(mutant)
        mutant.recompile()
        assert same_bits(outputs_and_writes(mutant, captured.arguments()), expected), str(mutation)
        if mutation.kind == SWAPPED:
            assert variants_chosen(report) == ["no positions"]
        elif mutation.node in report.bodies[0].owner:
            assert any(re.fullmatch(kind, mutation.kind) for kind in MEANS_THE_SAME), f"{mutation} was fused"
        tried += 1
    assert tried >= 25
