"""A tiny GLM in each scheme, through the kernels: PyPTO's interpreter on this CPU, nothing here ran on an NPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.chip import ASCEND_910B
from tests.support.glm import PHASES, prefill
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits
from tests.support.quantised import CASES, DENSE, LAYERS, ONE_EACH, SPARSE, quantised

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

NEW_TOKENS = 4

EXPERTS = {"dynamic_quantize": SPARSE, "swiglu": SPARSE}
"""What of the routed experts has a kernel: the activation, and the codes of it."""

OUTPUT = {"quant_linear": LAYERS, "add_rms_norm": LAYERS - SPARSE + 1, "norm_dynamic_quantize": SPARSE}
"""Attention's output projection, and the norm behind it, which quantises for a mixture, or stands before the head."""

INT8 = {"swiglu_mlp_w8a8_dynamic": DENSE, "router_quant_mlp_w8a8_dynamic": SPARSE}
INT4 = {"swiglu_mlp_w4a8_dynamic": DENSE, "gate_topk": SPARSE, "quant_mlp_w4a8_dynamic": SPARSE}
FLOATS = {
    "rms_norm": 1 + 2 * LAYERS,
    "add_rms_norm": 2 * LAYERS,
    "rotary": 2 * LAYERS,
    "swiglu": LAYERS + SPARSE,
    "gate_topk": SPARSE,
}
"""All that is not float8, one by one."""

BY_KERNELS = {
    "w8a8": {"norm_qkv_rope_w8a8": LAYERS, "quantize": LAYERS, **OUTPUT, **INT8, **EXPERTS},
    "w8a8_dynamic": {"norm_qkv_rope_w8a8_dynamic": LAYERS, **OUTPUT, **INT8, **EXPERTS}
    | {"dynamic_quantize": LAYERS + SPARSE},
    "fp8_per_token": FLOATS,
    "w4a8_dynamic": {"norm_qkv_rope_w8a8_dynamic": LAYERS, **OUTPUT, **INT4, **EXPERTS}
    | {"dynamic_quantize": LAYERS + SPARSE},
}
"""Sites that kernels take; the chip that these are cut for has no float8."""


@pytest.mark.parametrize("phase", ["prefill", "decode_static"])
@pytest.mark.parametrize("case", ONE_EACH)
def test_every_layer_runs_through_the_kernels_with_the_patterns_bits(case: str, phase: str) -> None:
    """The bits of the graph that is not fused, which are the patterns'. Attention rounds less than torch's."""
    model = quantised(case)
    (call,) = (one for one in PHASES if one.name == phase)
    (graph,) = capture(model, **call.arguments(model, False))
    module = graph.module()
    report = run_stages(module, targets=("pypto", "reference"), disable=("attention",))
    taken = {row.pattern for row in report.rows() if row.target == "pypto"}
    assert {name: report.count("chosen")[name] for name in taken} == BY_KERNELS[CASES[case].scheme]
    before = outputs_and_writes(graph.module(), graph.arguments())
    assert same_bits(outputs_and_writes(module, graph.arguments()), before)


def test_float8_is_refused_by_name_of_the_chip() -> None:
    model = quantised("fp8_per_token")
    report = run_stages(capture(model, **prefill(model))[0].module(), targets=("pypto",))
    refused = {row.pattern: row.found for row in report.rows() if row.stage == "KERNEL"}
    for block in ("norm_qkv_rope_fp8_per_token", "swiglu_mlp_fp8_per_token", "router_mlp_fp8_per_token"):
        reason = f"{block} wants a SoC that multiplies float8, as Ascend950; {ASCEND_910B.name} has none"
        assert reason in refused[block]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["w8a8", "w4a8_dynamic 1.0.0 in groups"])
def test_tokens_through_all_kernels_are_those_of_the_patterns(case: str) -> None:
    """Attention rounds less than torch's, so it is left to the patterns."""
    prompt = torch.randint(0, 256, (2, 5), generator=torch.Generator().manual_seed(3))
    found = [generate(quantised(case), prompt, *targets) for targets in (("pypto", "reference"), ("reference",))]
    assert found[0].shape == (2, 5 + NEW_TOKENS)
    assert torch.equal(*found)


def generate(model: Any, prompt: torch.Tensor, *targets: str) -> torch.Tensor:
    torch._dynamo.reset()
    options = {"engine": "eager", "targets": targets, "disable": ("attention",)}
    forward = model.forward
    try:
        model.forward = torch.compile(forward, backend="glmfuse", options=options)
        return model.generate(
            prompt, max_new_tokens=NEW_TOKENS, do_sample=False, cache_implementation="static", disable_compile=True
        )
    finally:
        model.forward = forward
