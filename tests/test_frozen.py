"""Values that depend on weights alone: made once, noticed when stale, and never more than a little memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import glmfuse
from glmfuse import Report, huggingface
from glmfuse.errors import OptionError
from glmfuse.lowering.weights import registry
from glmfuse.lowering.weights.hoist import SHARE, hoist
from tests.support.glm import decode_static, fresh, prefill, tiny
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

LAYERS = 2


def glm() -> Any:
    """With its router in bf16, as transformers before 5.24 has it, so that each call would cast it."""
    model = copy.deepcopy(tiny(torch.bfloat16, num_hidden_layers=LAYERS))
    for layer in model.model.layers[1:]:
        layer.mlp.gate.to(torch.bfloat16)
    return model


def compiled(model: Any, **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    run = torch.compile(model, backend="glmfuse", options={"engine": "eager", "frozen": True, **options})
    return lambda **arguments: _logits(run, arguments)


def _logits(run: Callable[..., Any], arguments: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = run(**fresh(arguments)).logits
    return found


def casts_of_weights(module: torch.fx.GraphModule) -> int:
    casts = [node for node in module.graph.nodes if node.target is torch.ops.aten._to_copy.default]
    sources = [node.args[0] for node in casts]
    return sum(source.op == "placeholder" and source.meta["val"].dim() == 2 for source in sources)


class Counting(nn.Module):
    """A norm whose weight goes through an exponential in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))
        self.big = nn.Parameter(torch.randn(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.exp(self.w).t() + self.big.sum()


def test_the_routers_cast_leaves_the_step() -> None:
    model = glm()
    captured = capture(model, **decode_static(model))[0]
    module = captured.module()
    run_stages(module)
    names = [node for node in module.graph.nodes if node.op == "placeholder"]
    weights = {
        place for place, value in enumerate(captured.inputs) if value.dim() in (1, 2, 3) and value.is_floating_point()
    }
    assert casts_of_weights(module) == LAYERS - 1
    derived, left = hoist(module, weights)
    assert (len(derived), left) == (LAYERS - 1, 0)
    assert casts_of_weights(module) == 0
    given = captured.arguments()
    values = [item.compute(*(given[place] for place in item.sources)) for item in derived]
    assert len(names) + len(derived) == len([node for node in module.graph.nodes if node.op == "placeholder"])
    before = outputs_and_writes(captured.module(), captured.arguments())
    found = outputs_and_writes(module, [*given, *values])
    assert same_bits(found[: len(before)], before)


@pytest.mark.parametrize("phase", [prefill, decode_static])
def test_no_bit_changes(phase: Any) -> None:
    model = glm()
    arguments = phase(model)
    report = Report()
    found = compiled(model, report=report, targets=("reference",))(**arguments)
    assert any(f"{LAYERS - 1} values made of weights once" in note for note in report.graphs[0].notes)
    expected = compiled(model, frozen=False, targets=("reference",))(**arguments)
    assert torch.equal(found, expected)


def reload(model: Any) -> None:
    router = model.model.layers[1].mlp.gate.weight
    model.load_state_dict({"model.layers.1.mlp.gate.weight": router.detach().flip(0)}, strict=False)


def reassign(model: Any) -> None:
    gate = model.model.layers[1].mlp.gate
    gate.weight = nn.Parameter(gate.weight.detach().flip(0))


def swap(model: Any) -> None:
    gate = model.model.layers[1].mlp.gate
    gate.weight.data = gate.weight.data.flip(0)


def swap_through_nothing(model: Any) -> None:
    """The old memory is given back first, so that the new weight may get its address."""
    gate = model.model.layers[1].mlp.gate
    new = gate.weight.data.flip(0).tolist()
    gate.weight.data = torch.empty(0, dtype=torch.bfloat16)
    gate.weight.data = torch.tensor(new, dtype=torch.bfloat16)


def write(model: Any) -> None:
    with torch.no_grad():
        gate = model.model.layers[1].mlp.gate
        gate.weight.copy_(gate.weight.flip(0))


def write_and_refresh(model: Any) -> None:
    """What weight loaders do; neither address nor version tells."""
    gate = model.model.layers[1].mlp.gate
    gate.weight.data.copy_(gate.weight.data.flip(0))
    glmfuse.refresh(model)


@pytest.mark.parametrize("change", [reload, reassign, swap, swap_through_nothing, write, write_and_refresh])
def test_a_changed_weight_is_never_stale(change: Callable[[Any], None]) -> None:
    model = glm()
    arguments = prefill(model)
    run = compiled(model, targets=("reference",))
    before = run(**arguments)
    change(model)
    found = run(**arguments)
    assert not torch.equal(found, before)
    assert torch.equal(found, compiled(model, frozen=False, targets=("reference",))(**arguments))


def test_one_copy_for_all_graphs_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = registry._make
    monkeypatch.setattr(registry, "_make", lambda derived, *rest: (made.append(derived), make(derived, *rest))[1])
    model = Counting().eval()
    torch._dynamo.reset()
    run = torch.compile(model, backend="glmfuse", options={"engine": "eager", "frozen": True}, dynamic=False)
    with torch.no_grad():
        for rows in (2, 3, 2, 3):
            x = torch.randn(rows, 8)
            assert torch.equal(run(x), model(x))
    with torch.inference_mode():
        assert torch.equal(run(x), model(x))
    assert len(made) == 2  # the exponential, and the sum


def test_what_would_take_too_much_memory_stays() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(64, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.exp(self.w)

    model, report = Wide().eval(), Report()
    torch._dynamo.reset()
    options = {"engine": "eager", "frozen": True, "report": report}
    x = torch.randn(2, 64)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="glmfuse", options=options)(x), model(x))
    assert f"1 more would take over {SHARE:.0%} of the weights" in report.graphs[0].notes[-1]


def test_what_a_call_hands_out_is_never_shared() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4))
            self.big = nn.Parameter(torch.randn(1024))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made = torch.exp(self.w)
            return made.view(2, 2), x * made + self.big.sum()

    model = Returns().eval()
    torch._dynamo.reset()
    run = torch.compile(model, backend="glmfuse", options={"engine": "eager", "frozen": True})
    x = torch.randn(4)
    with torch.no_grad():
        first = run(x)[0]
        first.zero_()
        assert torch.equal(run(x)[0], model(x)[0])


def test_full_size_weights_take_a_thousandth() -> None:
    from tests.test_cli import CONFIG

    config = huggingface.make_config(CONFIG)
    casts = (config.num_hidden_layers - config.first_k_dense_replace) * config.n_routed_experts * config.hidden_size * 4
    experts = config.n_routed_experts * 3 * config.hidden_size * config.moe_intermediate_size * 2
    assert casts < SHARE / 20 * experts * (config.num_hidden_layers - config.first_k_dense_replace)


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="takes the model"):
        glmfuse.refresh(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="takes True or False"):
        glmfuse.Options(frozen="yes")  # type: ignore[arg-type]
