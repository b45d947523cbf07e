"""What is fused where every kernel could be had: GLM at the sizes of one device of eight, without weights.

Nothing is run; the times that decide are PyPTO's cost model's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glmfuse import Report, huggingface
from glmfuse.backend import compile_graph
from glmfuse.lowering.pypto import target
from glmfuse.lowering.pypto.family import geometry

pytestmark = [
    pytest.mark.xdist_group("pypto"),
    pytest.mark.skipif(target.unavailable() is not None, reason=str(target.unavailable())),
]

LAYERS, DENSE = 3, 1
SPARSE = LAYERS - DENSE


def config_of(shape: str) -> dict[str, Any]:
    """One device's part of a model, of a few layers."""
    at = geometry(shape)
    return {
        **huggingface.TINY,
        "dtype": "bfloat16",
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": DENSE,
        "hidden_size": at.hidden,
        "num_attention_heads": at.heads,
        "num_key_value_heads": at.kv_heads,
        "head_dim": at.head_dim,
        "use_qk_norm": at.qk_norm,
        "intermediate_size": at.inter,
        "moe_intermediate_size": at.inter,
        "n_routed_experts": at.experts,
        "num_experts_per_tok": at.top_k,
        "max_position_embeddings": at.cached,
    }


def report_of(config: dict[str, Any], tokens: int, **options: Any) -> Report:
    """Of one decode step over a static cache, on fake tensors."""
    report = Report()
    with huggingface.weightless(), torch.no_grad():
        model = huggingface.build_weightless(huggingface.make_config(config))
        cache = huggingface.static_cache(model, tokens, config["max_position_embeddings"])
        run = torch.compile(model, backend=compile_graph, options={"engine": "eager", "report": report, **options})
        run(huggingface.random_tokens(model, tokens, 1), **huggingface.call_with(model, cache))
    return report


@pytest.mark.parametrize("tokens", [1, 8, 32])
@pytest.mark.parametrize("shape", ["glm-4.5/tp8", "glm-4.5-air/tp16", "glm-4.5/tp4"])
def test_whole_blocks_are_fused_and_not_their_parts(shape: str, tokens: int) -> None:
    """The parts' own gains, over the operators that spell them, are larger than the blocks' over the parts."""
    report = report_of(config_of(shape), tokens, targets=("pypto", "reference"))
    chosen = {row.pattern: 0 for row in report.rows() if row.target == "pypto"}
    chosen = {name: report.count("chosen")[name] for name in chosen}
    experts = {"swiglu": SPARSE}
    blocks = {"norm_qkv_rope": LAYERS, "add_rms_norm": LAYERS + 1, "gate_topk": SPARSE, "attention": LAYERS}
    assert chosen == {**blocks, "swiglu_mlp": LAYERS, **experts}
