"""A tiny quantised GLM on the fake npu:0, prepared: beside the same checkpoint on the CPU, and compiled by glmfuse.

What is shown is that the model's layers become these calls, which graphs have them, and that numbers agree up to what
the references round elsewhere; no chip's numbers, and no time.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import glmfuse
from glmfuse import dialects, huggingface
from glmfuse.errors import QuantizationError, UnavailableError
from glmfuse.quantization.modules.experts import QuantizedExperts
from glmfuse.quantization.modules.linear import QuantizedLinear
from glmfuse.quantization.npu import to_npu
from glmfuse.quantization.npu.modules import NpuExperts, NpuLinear
from tests.offline_ascend.standin.log import record
from tests.support import quantised

dialects.load(pytest.fail)

INT = ("w8a8", "w8a8_dynamic", "w4a8_dynamic 1.0.0", "w4a8_dynamic 1.0.0 in groups", "w4a8_dynamic 0 in groups")
LOGITS = {"fp8_per_token": 0.15}
FLIPS = 5e-2
"""Rows of three layers are quantised again and again: a code that flips in one moves all that follow.

By one step, which is 1 / 127 of a row's largest number in int8, and up to 1 / 8 of the number itself in float8.
"""


def pair(case: str) -> tuple[Any, Any]:
    """The same checkpoint on the CPU and, prepared, on npu:0; eager attention, which rounds alike on both."""
    on_cpu = copy.deepcopy(quantised.quantised(case))
    on_cpu.set_attn_implementation("eager")
    return on_cpu, to_npu(copy.deepcopy(on_cpu))


def of(model: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("case", INT)
def test_every_layer_is_prepared_and_the_logits_are_the_cpus(case: str) -> None:
    check_prepared(case)


@pytest.mark.usefixtures("on_a_chip_with_fp8")
def test_with_fp8_too_where_the_chip_says_that_it_has_it() -> None:
    check_prepared("fp8_per_token")


def check_prepared(case: str) -> None:
    on_cpu, on_npu = pair(case)
    assert of(on_npu, QuantizedLinear, QuantizedExperts) == 0
    assert of(on_npu, NpuLinear) == of(on_cpu, QuantizedLinear) > 0
    assert of(on_npu, NpuExperts) == of(on_cpu, QuantizedExperts) > 0
    assert {tensor.device.type for tensor in (*on_npu.parameters(), *on_npu.buffers())} == {"npu"}
    ids = huggingface.random_tokens(on_cpu, 2, 7)
    expected = on_cpu(ids, use_cache=False).logits.float()
    with quantised.routed_as(on_npu, on_cpu, input_ids=ids, use_cache=False):
        found = on_npu(ids.npu(), use_cache=False).logits.cpu().float()
    assert (found - expected).norm() <= LOGITS.get(case, FLIPS) * expected.norm()


COUNTS = {
    "w8a8": {"quantize": 6, "quant_linear": 21, "quant_grouped_mlp": 2},
    "w8a8_dynamic": {"dynamic_quantize": 12, "quant_linear": 21, "quant_grouped_mlp": 2},
    "w4a8_dynamic 1.0.0 in groups": {"quant_linear": 12, "split_w4_linear": 9, "split_w4_grouped_mlp": 2},
}
"""q, k and v quantise once: six of twelve. Dense and shared layers are int8 beside static attention, and int4 beside
attention by rows: three layers of three products. FP8's experts are not read: they quantise twice more in each layer.
"""


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.slow
def test_compiled_it_is_captured_once_and_has_the_eager_models_bits(case: str) -> None:
    check_compiled(case, COUNTS[case])


@pytest.mark.usefixtures("on_a_chip_with_fp8")
@pytest.mark.slow
def test_compiled_with_fp8_too() -> None:
    check_compiled("fp8_per_token", {"fp8_quantize": 16, "fp8_linear": 21})


def check_compiled(case: str, counts: dict[str, int]) -> None:
    _, model = pair(case)
    report = glmfuse.Report()
    options = {"engine": "npugraph_ex", "targets": ("reference",), "report": report}
    compiled = torch.compile(model, backend="glmfuse", fullgraph=True, dynamic=False, options=options)
    ids = huggingface.random_tokens(model, 2, 7)
    given = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    with record() as seen:
        first, second = (compiled(ids, **given).logits for _ in range(2))
    assert (seen.captures, seen.replays) == (1, 2)
    expected = model(ids, **given).logits
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    found = report.count()
    assert {name: found[name] for name in counts} == counts
    assert found["rms_norm"] == 13


def test_fp8_names_its_layer_on_a_chip_without_it() -> None:
    model = copy.deepcopy(quantised.quantised("fp8_per_token"))
    with pytest.raises(QuantizationError, match=r"layers\.0\..*_proj: expected a SoC with FP8 .*, found Ascend910B1"):
        to_npu(model)


def test_without_torch_npu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmfuse.quantization.npu.move.is_loaded", lambda: False)
    with pytest.raises(UnavailableError, match="device 'npu' cannot be used: torch_npu is not imported"):
        to_npu(nn.Linear(3, 3))
