"""int8 rows by int4 weights on torch_npu: linear layers as one group, and routed experts; which calls are the patterns.

Each case changes one argument. On the fake npu:0; numbers are those of the stand-ins' references, no chip's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from glmfuse import dialects
from glmfuse.quantization.npu import experts as npu_experts
from glmfuse.quantization.npu import linear as npu_linear
from glmfuse.quantization.npu.place import place
from glmfuse.quantization.prepare import int4, layers
from glmfuse.quantization.prepare.assist import assist_bias
from glmfuse.quantization.prepare.scale_word import wide_bits
from tests.offline_ascend import test_quantised_experts as experts
from tests.offline_ascend.test_dialects import calls
from tests.offline_ascend.test_quantised import traced
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

BF16, FP16, FP32, INT8, INT64 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int64
NPU = torch.device("npu", 0)
npu = torch.ops.npu
dialects.load(pytest.fail)

TOKENS, INPUTS, OUTPUTS, GROUPS = 5, 64, 32, 2
EXPERTS, HIDDEN, WIDTH = experts.EXPERTS, experts.HIDDEN, experts.WIDTH
Tensors = dict[str, Tensor]


def held(*shape: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words of int4 [..., in, out / 8], words of scales, and the sums that the operator takes beside them."""
    values = torch.randint(-8, 8, shape, dtype=INT8)
    scale = torch.rand(*shape[:-2], groups, shape[-1]) * 1e-2 + 1e-3
    return int4.pack_words(values), wide_bits(scale), assist_bias(values, scale)


def drawn() -> Tensors:
    made = {
        "rows": torch.randint(-128, 128, (TOKENS, INPUTS), dtype=INT8),
        "per_token": torch.rand(TOKENS) * 0.1,
        "end": torch.tensor([TOKENS]),
    }
    made |= dict(zip("wsa", held(INPUTS, OUTPUTS, groups=GROUPS), strict=True))
    return {name: value.npu() for name, value in made.items()}


def linear(t: Tensors, **changed: Any) -> Tensor:
    """As `quantization.npu.linear` has it; `scale`, `bias` and `weight` are given whole."""
    fill = torch.full((1,), TOKENS, dtype=INT64, device=t["rows"].device)
    given = {
        "x": [t["rows"]], "weight": [t["w"][None]], "scale": [t["s"][None]], "bias": [t["a"][None]],
        "per_token_scale": [t["per_token"]], "split_item": 2, "group_list": fill, "group_type": 0,
        "group_list_type": 0, "output_dtype": BF16, **changed,
    }  # fmt: skip
    return npu.npu_grouped_matmul(**given)[0]


def counted(t: Tensors, **changed: Any) -> Tensor:
    """As vllm-ascend 45f53ff760 has its shared experts: one scale for each output, in a matrix of one row."""
    return linear(t, **{"scale": [t["s"][0].reshape(1, 1, -1)], "group_list_type": 1, **changed})


def half_of(t: Tensors) -> Tensor:
    return torch.full((1,), TOKENS // 2, dtype=INT64, device=t["rows"].device)


def as_fp32(t: Tensors) -> Tensor:
    return t["s"].to(torch.int32).view(FP32)


LINEAR: dict[str, Callable[[Tensors], Tensor]] = {
    "groups of inputs": linear,
    "by outputs": lambda t: linear(t, scale=[t["s"][0][None]]),
    "in fp16": lambda t: linear(t, output_dtype=FP16),
    "rows counted, as vllm-ascend has it": counted,
    "rows counted, in groups of inputs": lambda t: counted(t, scale=[t["s"][None]]),
}

NO_LINEAR: dict[str, Callable[[Tensors], Tensor]] = {
    "no sums of weights": lambda t: linear(t, bias=None),
    "sums in bf16": lambda t: linear(t, bias=[t["a"][None].to(BF16)]),
    "scales in fp32": lambda t: linear(t, scale=[as_fp32(t)[None]]),
    "rows that are not scaled": lambda t: linear(t, per_token_scale=None),
    "rows scaled in bf16": lambda t: linear(t, per_token_scale=[t["per_token"].to(BF16)]),
    "a group of some rows": lambda t: linear(t, group_list=half_of(t)),
    "an end from outside": lambda t: linear(t, group_list=t["end"]),
    "groups that say whose they are": lambda t: linear(t, group_list_type=2),
    "a result in fp32": lambda t: linear(t, output_dtype=FP32),
    "an activation": lambda t: linear(t, act_type=1),
    "an offset of the result": lambda t: linear(t, offset=[t["a"][None]]),
    "weights that are undone first": lambda t: linear(t, antiquant_scale=[t["a"][None]]),
    "weights that are said to be hifloat8": lambda t: linear(t, weight_dtype=torch_npu.hifloat8),
    "scales that are said to be exponents": lambda t: linear(t, scale_dtype=torch_npu.float8_e8m0fnu),
    "weights in int8": lambda t: linear(t, weight=[t["rows"].new_empty(1, INPUTS, OUTPUTS)]),
    "words of inputs": lambda t: linear(t, weight=[t["w"][None].transpose(1, 2).contiguous().transpose(1, 2)]),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_layer_as_one_group_is_found(name: str) -> None:
    assert dict(run_stages(traced(LINEAR[name], drawn())).count()) == {"split_w4_linear": 1}


@pytest.mark.parametrize("name", NO_LINEAR)
def test_what_is_no_such_layer_is_not_mistaken(name: str) -> None:
    module = traced(NO_LINEAR[name], drawn())
    before = calls(module)
    assert not run_stages(module).count()
    assert calls(module) == before


def expert_tensors() -> Tensors:
    t = experts.tensors()
    for which, shape, groups in (("1", (HIDDEN, 2 * WIDTH), 2), ("2", (WIDTH, HIDDEN), 1)):
        made = held(EXPERTS, *shape, groups=groups)
        t |= {f"{kind}{which}": value.npu() for kind, value in zip("wsa", made, strict=True)}
    return t


def named(t: Tensors, rows: Tensor, scale: Tensor, counts: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    """What is activated quantised to int8 by name, as `quantization.npu.experts` has it."""
    both = experts.grouped(rows, scale, t["w1"], t["s1"], counts, **keywords)
    return npu.npu_dynamic_quant(npu.npu_swiglu(both), dst_type=INT8)


def layer(*parts: Callable[..., Any], **changed: Callable[[Tensors], dict[str, Any]]) -> Callable[[Tensors], Tensor]:
    """A layer with the sums of its weights; keywords of `activated` and `down` besides, as functions."""

    def with_sums(name: str, which: str) -> Callable[[Tensors], dict[str, Any]]:
        return lambda t: {"bias": [t[f"a{which}"]], **changed.get(name, lambda t: {})(t)}

    rest = {name: made for name, made in changed.items() if name not in ("activated", "down")}
    return experts.layer(*parts, activated=with_sums("activated", "1"), down=with_sums("down", "2"), **rest)


EXPERT_LAYERS: dict[str, Callable[[Tensors], Tensor]] = {
    "as vllm-ascend has it": layer(),
    "quantised by name, finalized": layer(named, experts.finalized),
}

NO_EXPERT_LAYERS: dict[str, Callable[[Tensors], Tensor]] = {
    "gate and up without sums": layer(activated=lambda t: {"bias": None}),
    "down without sums": layer(down=lambda t: {"bias": None}),
    "sums in bf16": layer(down=lambda t: {"bias": [t["a2"].to(BF16)]}),
    "gate and up told where, not how many": layer(activated=lambda t: {"group_list_type": 0}),
    "gate and up rounded to fp16": layer(activated=lambda t: {"output_dtype": FP16}),
    "down activated": layer(down=lambda t: {"act_type": 1}),
    "down offset": layer(down=lambda t: {"offset": [t["a2"]]}),
    "rows smoothed": layer(routing=lambda t: {"scale": t["smooth"]}),
    "experts of another rank": layer(routing=lambda t: {"active_expert_range": [1, EXPERTS]}),
    "something added": layer(combine=experts.finalized, combined=lambda t: {"skip1": t["skip"]}),
}


def of_experts(module: torch.fx.GraphModule) -> set[str]:
    return {name for name in run_stages(module).count() if name.endswith("_mlp")}


@pytest.mark.parametrize("name", EXPERT_LAYERS)
def test_experts_are_found(name: str) -> None:
    assert of_experts(traced(EXPERT_LAYERS[name], expert_tensors())) == {"split_w4_grouped_mlp"}


@pytest.mark.parametrize("name", NO_EXPERT_LAYERS)
def test_what_are_no_such_experts_are_not_mistaken(name: str) -> None:
    module = traced(NO_EXPERT_LAYERS[name], expert_tensors())
    before = calls(module)
    assert not of_experts(module)
    assert calls(module) == before


def prepared(dtype: torch.dtype, groups: int, *lead: int) -> list[layers.Int4]:
    """Layers to and from a width, on the npu, as a checkpoint's become."""
    made = []
    for outputs, inputs in ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)):
        values = torch.randint(-8, 8, (*lead, outputs, inputs), dtype=INT8)
        scale = torch.rand(*lead, outputs, groups) * 1e-2 + 1e-3
        held = {"weight": values, "weight_scale": scale.to(dtype).float()}
        made.append(place(layers.w4a8_dynamic(held, "layer"), NPU, nz=False))
    return made


def read(model: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, int]:
    """Sites of the patterns of this file, fused; the results stay what they were, to the bit."""
    captured = capture(model, x)[0]
    module = captured.module()
    found = run_stages(module, only=("split_w4_linear", "split_w4_grouped_mlp")).count("chosen")
    sides = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
    assert same_bits(*([value.cpu() for value in side if isinstance(value, Tensor)] for side in sides))
    return dict(found)


PREPARED = pytest.mark.parametrize(("groups", "dtype"), [(1, BF16), (1, FP16), (GROUPS, BF16), (GROUPS, FP16)])


@pytest.mark.usefixtures("out_operators_unchecked")
@pytest.mark.parametrize("dynamic", [False, True], ids=["", "any number of tokens"])
@PREPARED
def test_a_linear_layer_that_was_prepared_is_read(groups: int, dtype: torch.dtype, dynamic: bool) -> None:
    x, (layer, _) = torch.randn(1, TOKENS, HIDDEN).to(dtype).npu(), prepared(dtype, groups)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 1)
    biased = layer._replace(bias=torch.randn(2 * WIDTH).npu())
    for each in (layer, biased):
        assert read(lambda x, each=each: npu_linear.w4a8_dynamic(x, each), x) == {"split_w4_linear": 1}


@pytest.mark.usefixtures("out_operators_unchecked")
@PREPARED
def test_experts_that_were_prepared_are_read(groups: int, dtype: torch.dtype) -> None:
    """Of as many tokens as there are: how many rows it routes is no symbol to torch_npu."""
    x, both = torch.randn(1, TOKENS, HIDDEN).to(dtype).npu(), prepared(dtype, groups, EXPERTS)

    def model(x: Tensor) -> Tensor:
        weights, ids = x[0, :, :EXPERTS].float().softmax(-1).topk(experts.ACTIVE)
        return npu_experts.w4a8_dynamic(x, weights, ids, *both)

    assert read(model, x) == {"split_w4_grouped_mlp": 1}
