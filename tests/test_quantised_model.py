"""A tiny GLM in each scheme: written, loaded by transformers, compiled. On a CPU, in plain torch."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse import Report
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from tests.support.glm import PHASES
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.quantised import CASES, COUNTS, LAYERS, LOGITS, ONE_EACH, far, in_float, quantised, routed_as

NEW_TOKENS = 32

PRODUCTS = ("quant_linear", "fp8_linear", "w4_linear")
EXPERTS = ("quant_grouped_mlp", "fp8_grouped_mlp", "w4_grouped_mlp")


@cache
def captured(case: str, phase: str, dynamic: bool = False) -> Captured:
    model = quantised(case)
    (call,) = (one for one in PHASES if one.name == phase)
    (graph,) = capture(model, **call.arguments(model, dynamic))
    return graph


def check_fused(case: str, graph: Captured) -> None:
    """So many sites of each pattern, every quantised module among them, and no bit changed."""
    module = graph.module()
    report = run_stages(module)
    chosen, found = report.count("chosen"), report.count()
    blocks = {name: count for name, count in chosen.items() if name not in ("attention", "rotary_embedding")}
    assert blocks == COUNTS[CASES[case].scheme]
    layers = list(quantised(case).modules())
    assert sum(found[name] for name in PRODUCTS) == sum(isinstance(layer, QuantizedLinear) for layer in layers)
    assert sum(found[name] for name in EXPERTS) == sum(isinstance(layer, QuantizedExperts) for layer in layers)
    before = outputs_and_writes(graph.module(), graph.arguments())
    assert not any(value.isnan().any() for value in before if isinstance(value, Tensor))
    assert same_bits(outputs_and_writes(module, graph.arguments()), before)


@pytest.mark.parametrize("phase", ["prefill", "decode_static"])
@pytest.mark.parametrize("case", ONE_EACH)
def test_every_layer_fuses_and_no_bit_changes(case: str, phase: str) -> None:
    check_fused(case, captured(case, phase))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ONE_EACH])
def test_every_form_of_a_checkpoint_fuses_alike(case: str) -> None:
    check_fused(case, captured(case, "decode_static"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["w8a8", "w4a8_dynamic 1.0.0 in groups"])
def test_sizes_may_vary(case: str) -> None:
    check_fused(case, captured(case, "prefill", dynamic=True))


@pytest.mark.parametrize("phase", ["prefill", "decode_static"])
def test_x_is_quantised_once_for_q_k_and_v(phase: str) -> None:
    """Static scales are parameters: what is equal only in value would be quantised three times."""
    report = run_stages(captured("w8a8", phase).module())
    assert report.count()["quantize"] == 2 * LAYERS, "for q, k and v, and for the output projection"


def generate(model: Any, prompt: Tensor) -> Tensor:
    return model.generate(
        prompt, max_new_tokens=NEW_TOKENS, do_sample=False, cache_implementation="static", disable_compile=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_EACH)
def test_32_tokens_equal_eagers(case: str) -> None:
    model, report = quantised(case), Report()
    prompt = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))
    compiled = copy.deepcopy(model)
    compiled.compile(backend="glmfuse", options={"engine": "eager", "report": report})
    found = generate(compiled, prompt)
    assert found.shape == (2, 7 + NEW_TOKENS)
    assert torch.equal(found, generate(model, prompt))
    assert len(report.graphs) == 2, "one graph for the prompt, one for every further token"
    front = next(name for name in COUNTS[CASES[case].scheme] if name.startswith("norm_qkv_rope"))
    assert {graph.count("chosen")[front] for graph in report.graphs} == {LAYERS}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_near_the_float_models(case: str) -> None:
    model, wide = copy.deepcopy(quantised(case)), copy.deepcopy(in_float()).float()
    ids = torch.randint(0, 256, (4, 33))
    with routed_as(model, wide, input_ids=ids):
        found = far(model(ids).logits, wide(ids).logits)
    print(case, found)
    bound = LOGITS[CASES[case].scheme]
    assert bound / 10 < found < bound
