"""Generation: the tokens are eager's, and where Inductor itself leaves them, its logits are no further off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmfuse import Report, huggingface
from tests.support.glm import BATCH, DTYPES, PROMPT, tiny

NEW_TOKENS = 32
SMALL = {"num_hidden_layers": 2}


def generate(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    return model.generate(
        prompt, max_new_tokens=NEW_TOKENS, do_sample=False, cache_implementation="static", disable_compile=True
    )


def compiled_in_place(model: Any, **options: Any) -> Any:
    copied = copy.deepcopy(model)
    copied.compile(backend="glmfuse", options=options)
    return copied


def prompt_of(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, PROMPT), generator=torch.Generator().manual_seed(seed))


def check_tokens(dtype: torch.dtype, engine: str, layers: dict[str, int]) -> None:
    model = tiny(dtype, **layers)
    prompt = prompt_of(1)
    report = Report()
    found = generate(compiled_in_place(model, engine=engine, report=report), prompt)
    assert torch.equal(found, generate(model, prompt))
    assert len(report.graphs) == 2, "one graph for the prompt, one for every further token"
    depth = model.config.num_hidden_layers
    assert {graph.count("chosen")["norm_qkv_rope"] for graph in report.graphs} == {depth}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_equal_eagers_with_the_eager_engine(dtype: torch.dtype) -> None:
    check_tokens(dtype, "eager", {})


def test_tokens_equal_those_of_aot_without_fusion() -> None:
    """On any prompt, also where AOT itself leaves eager's tokens, as on prompt 0 in bf16.

    Under Dynamo transformers repeats keys and values over the heads; in eager decoding it does not.
    """
    model = tiny(torch.bfloat16)
    plain = copy.deepcopy(model)
    plain.compile(backend="aot_eager")
    ours = compiled_in_place(model, engine="eager", targets=("reference",))
    for seed in range(3):
        assert torch.equal(generate(ours, prompt_of(seed)), generate(plain, prompt_of(seed)))


@pytest.mark.slow
def test_tokens_equal_eagers_with_inductor_in_fp32() -> None:
    check_tokens(torch.float32, "inductor", SMALL)


def forced_logits(run: Callable[..., Any], model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of each new token when the tokens are given: a prefill, then decode steps."""
    cache = huggingface.static_cache(model, BATCH, PROMPT + NEW_TOKENS)
    logits = [run(input_ids=tokens[:, :PROMPT], **huggingface.call_with(model, cache)).logits[:, -1]]
    for position in range(PROMPT, tokens.shape[1] - 1):
        step = run(input_ids=tokens[:, position : position + 1], **huggingface.call_with(model, cache))
        logits.append(step.logits[:, -1])
    return torch.stack(logits).double()


@pytest.mark.slow
def test_with_inductor_logits_are_as_near_to_fp32_as_plain_inductors() -> None:
    model = tiny(torch.bfloat16, **SMALL)
    wide = copy.deepcopy(model).float()
    tokens = generate(model, prompt_of(1))
    exact = forced_logits(wide, wide, tokens)
    errors = {}
    for backend in ("inductor", "glmfuse"):
        torch._dynamo.reset()
        found = forced_logits(torch.compile(model, backend=backend), model, tokens)
        errors[backend] = ((found - exact).norm() / exact.norm()).item()
    assert errors["glmfuse"] <= 1.1 * errors["inductor"], errors
    assert errors["inductor"] > 0
