"""MTP layers of quantised checkpoints: transformers' MtpModel and generate, on a CPU."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_layers
from transformers.cache_utils import MtpCache

from glmfuse import Report
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.mtp import MtpModel
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.mtp import arguments
from tests.support.quantised import CASES, COUNTS, LAYERS, LOGITS, ONE_EACH, far, in_float, quantised, routed_as

TRANSFORMERS_OWN = modeling_layers.MtpModel
NEW_TOKENS = 32


@cache
def mtp_of(case: str) -> Any:
    return TRANSFORMERS_OWN.from_pretrained(quantised(case)).eval()


@pytest.mark.parametrize("case", CASES)
def test_its_layers_are_those_that_the_checkpoint_describes(case: str) -> None:
    mtp, model = mtp_of(case), quantised(case)
    (layer,) = mtp.layers
    last = model.model.layers[-1]
    for name, module in last.named_modules():
        assert type(layer.mtp_block.get_submodule(name)) is type(module), name
    assert isinstance(layer.mtp_block.mlp.experts, QuantizedExperts)
    assert isinstance(layer.mtp_block.self_attn.q_proj, QuantizedLinear)
    assert mtp.embed_tokens is model.model.embed_tokens
    assert mtp.shared_head is model.lm_head
    assert not any(value.is_meta for value in mtp.parameters())


def test_that_of_a_float_model_is_transformers_own() -> None:
    made = TRANSFORMERS_OWN.from_pretrained(in_float())
    assert type(made) is TRANSFORMERS_OWN is not MtpModel
    assert not any(isinstance(module, QuantizedLinear) for module in made.modules())


@pytest.mark.parametrize("case", CASES)
def test_its_logits_are_near_the_float_layers(case: str) -> None:
    mtp, wide = mtp_of(case), copy.deepcopy(TRANSFORMERS_OWN.from_pretrained(in_float()))
    hidden = torch.randn(1, 9, mtp.config.hidden_size).to(torch.bfloat16)

    def call() -> dict[str, Any]:
        ids, positions = torch.arange(40, 49)[None], torch.arange(1, 10)[None]
        given = {"input_ids": ids, "last_hidden_states": hidden, "attention_mask": None, "position_ids": positions}
        return {**given, "mtp_cache": MtpCache(config=mtp.config)}

    with routed_as(mtp, wide, **call()):
        found = far(mtp(**call())[1], wide(**call())[1])
    print(case, found)
    assert 1e-3 < found < LOGITS[CASES[case].scheme] / 2, "one layer, where the model has three"


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("case", ONE_EACH)
def test_a_layer_fuses_whole_and_no_bit_changes(case: str, tokens: int) -> None:
    mtp = mtp_of(case)
    (captured,) = capture(mtp, **arguments(mtp, tokens, cached=6 if tokens == 1 else 0))
    module = captured.module()
    chosen = run_stages(module).count("chosen")
    front, _, experts, rows, product, _ = COUNTS[CASES[case].scheme]
    once = ("mtp_head", front, experts, rows, product)
    assert {name: chosen[name] for name in once} == dict.fromkeys(once, 1)
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


def generate(model: Any, prompt: Tensor, **how: Any) -> Tensor:
    return model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, **how)


@pytest.mark.parametrize("case", ONE_EACH)
def test_drafted_tokens_are_the_models_own(case: str) -> None:
    """Nearly each is the best of the model given those before it, in one call over all.

    In bf16 a call of another length rounds otherwise, and then a router may choose another expert: a token that is
    best in one call need not be in the other. In float models of bf16 neither.
    """
    model, prompt = quantised(case), torch.randint(0, 256, (1, 7))
    found = generate(model, prompt, use_mtp=True)
    assert found.shape == (1, 7 + NEW_TOKENS)
    logits = model(found[:, :-1]).logits[:, 6:].float()
    chosen = logits.gather(-1, found[:, 7:, None]).squeeze(-1)
    gap = logits.amax(-1) - chosen
    assert gap.quantile(0.9) < 0.5 * logits.std()
    assert (gap == 0).float().mean() > 0.7
    wrong = logits.gather(-1, found[:, 7:, None].roll(1, 1)).squeeze(-1)
    assert (logits.amax(-1) - wrong).mean() > logits.std(), "other tokens would be far off"


@pytest.mark.slow
def test_compiled_model_and_layer_draft_eagers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes the MtpModel inside generate, so that its class is what can be compiled.

    One scheme: a model and an MTP layer of each are compiled apart, and drafting is not theirs.
    """
    case = "w8a8"
    model, prompt = copy.deepcopy(quantised(case)), torch.randint(0, 256, (1, 7))
    expected = model.generate(prompt, use_mtp=True, max_new_tokens=12, do_sample=False)
    reports = {"model": Report(), "mtp": Report()}
    options = {name: {"engine": "eager", "report": report} for name, report in reports.items()}
    model.compile(backend="glmfuse", options=options["model"])
    compiled = torch.compile(TRANSFORMERS_OWN.forward, backend="glmfuse", fullgraph=True, options=options["mtp"])
    monkeypatch.setattr(TRANSFORMERS_OWN, "forward", compiled)
    assert torch.equal(model.generate(prompt, use_mtp=True, max_new_tokens=12, do_sample=False), expected)
    front = next(iter(COUNTS[CASES[case].scheme]))
    for name, layers in (("model", LAYERS), ("mtp", 1)):
        assert reports[name].graphs
        assert {graph.count("chosen")[front] for graph in reports[name].graphs} == {layers}
