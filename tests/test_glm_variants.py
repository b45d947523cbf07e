"""Every way in which the GLM-4.5 family varies still matches fully and changes no bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from glmfuse import huggingface
from tests.support.glm import decode_static, prefill
from tests.support.graphs import capture
from tests.support.merged import merge_weights
from tests.test_glm_cases import check_fused, shallow

VARIANTS: dict[str, dict[str, Any]] = {
    "no qk-norm (Air)": {"use_qk_norm": False},
    "no attention bias": {"attention_bias": False},
    "neither": {"attention_bias": False, "use_qk_norm": False},
    "groups": {"n_group": 4, "topk_group": 2},
    "no renormalisation": {"norm_topk_prob": False},
    "scale 1 (Air)": {"routed_scaling_factor": 1.0},
    "two shared experts": {"n_shared_experts": 2},
    "full rotary": {"rotary": 1.0},
    "kv heads as heads": {"num_key_value_heads": 8},
    "kv heads as heads, no qk-norm": {"num_key_value_heads": 8, "use_qk_norm": False},
    "one kv head": {"num_key_value_heads": 1},
    "another eps": {"rms_norm_eps": 1e-3},
}
DTYPES = (torch.bfloat16, torch.float32)
CALLS = ((torch.bfloat16, prefill), (torch.bfloat16, decode_static), (torch.float32, prefill))


@pytest.mark.parametrize(("dtype", "phase"), CALLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_matches_fully(variant: str, dtype: torch.dtype, phase: Any) -> None:
    model = shallow(dtype, **VARIANTS[variant])
    check_fused(capture(model, **phase(model))[0])


@pytest.mark.parametrize(("dtype", "phase"), CALLS)
@pytest.mark.parametrize("variant", ["groups", "no qk-norm (Air)", "no attention bias"])
def test_merged_weights_match_fully(variant: str, dtype: torch.dtype, phase: Any) -> None:
    model = merge_weights(shallow(dtype, **VARIANTS[variant]))
    report = check_fused(capture(model, **phase(model))[0])
    fused = {row.pattern: row.variant for row in report.rows() if row.status == "chosen"}
    assert "no w_k" in fused["norm_qkv_rope"]
    assert "no w_up" in fused["swiglu_mlp"]
    assert "no w_shared_up" in fused["moe"]


@pytest.mark.parametrize("tokens", [1, 5], ids=["one token", "tokens"])
def test_batch_of_one(tokens: int) -> None:
    model = shallow(torch.bfloat16)
    check_fused(capture(model, input_ids=huggingface.random_tokens(model, 1, tokens))[0])


@pytest.mark.parametrize("phase", [prefill, decode_static])
def test_a_router_in_fp32_beside_a_half_model(phase: Any) -> None:
    model = copy.deepcopy(shallow(torch.bfloat16))
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.float()
    report = check_fused(capture(model, **phase(model))[0])
    fused = {row.variant for row in report.rows() if row.pattern == "gate_topk" and row.status == "absorbed"}
    assert any("w=torch.float32" in variant for variant in fused), fused


def test_two_lengths_in_one_process() -> None:
    model = shallow(torch.bfloat16)
    for tokens in (4, 9):
        check_fused(capture(model, input_ids=huggingface.random_tokens(model, 2, tokens))[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dynamic_true(dtype: torch.dtype) -> None:
    model = shallow(dtype)
    graphs = capture(model, dynamic=True, **prefill(model))
    captured = graphs[-1]
    placeholders = [node for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    assert any(isinstance(node.meta["val"], torch.SymInt) for node in placeholders)
    scalars = [node.meta["val"] for node in placeholders if isinstance(node.meta["val"], torch.Tensor)]
    assert not [val for val in scalars if val.dim() == 0 and val.dtype == torch.float64]
    check_fused(captured)
