"""Every reference, called by the operator's real schema, gives what torch_npu's own Meta kernel says it will.

Proven of shapes, dtypes and strides: they are the wheel's. Of numbers nothing is said here.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.offline_ascend import arguments, arguments_moe
from tests.offline_ascend.arguments import Call, Draw
from tests.offline_ascend.standin.references import REFERENCES

DRAWS = 30
ARGUMENTS = {**arguments.ARGUMENTS, **arguments_moe.ARGUMENTS}
WITHOUT_META = {name for name, reference in REFERENCES.items() if reference.shapes is not None}


def form(value: Any) -> list[Any]:
    """What a Meta kernel can know of results."""
    leaves = pytree.tree_leaves(value)
    return [(x.dtype, tuple(x.shape), x.stride()) if isinstance(x, Tensor) else x for x in leaves]


def on(device: str, drawn: Call) -> Call:
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to(device), (drawn.args, drawn.kwargs))
    return Call(args, kwargs)


def test_every_reference_has_arguments() -> None:
    assert set(ARGUMENTS) == set(REFERENCES) - {
        "npu_fused_infer_attention_score.out",
        "_npu_fused_infer_attention_score_get_max_workspace",
    }


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_the_reference_has_the_schemas_names_and_defaults(name: str) -> None:
    """The dispatcher leaves out arguments that have their schema's default: a reference needs the same ones."""
    packet, _, overload = name.partition(".")
    schema = getattr(getattr(torch.ops.npu, packet), overload or "default")._schema
    parameters = inspect.signature(REFERENCES[name].compute).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument in schema.arguments:
        parameter = parameters.get(argument.name)
        assert parameter is not None or open_ended, argument.name
        if parameter is not None and argument.has_default_value():
            mine = parameter.default
            assert (list(mine) if isinstance(mine, tuple) else mine) == argument.default_value, argument.name


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - WITHOUT_META))
def test_the_reference_has_the_form_that_the_meta_kernel_says(name: str) -> None:
    op = getattr(torch.ops.npu, name)
    forms = set()
    for seed in range(DRAWS):
        drawn = ARGUMENTS[name](Draw(seed))
        meta, npu = on("meta", drawn), on("npu", drawn)
        said, found = op(*meta.args, **meta.kwargs), op(*npu.args, **npu.kwargs)
        assert form(found) == form(said), f"{name}, draw {seed}"
        assert all(x.device.type == "npu" for x in pytree.tree_leaves(found) if isinstance(x, Tensor))
        forms.add(str([form(x) for x in drawn.args]))
    assert len(forms) >= 20


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_replay_gives_what_an_eager_call_gives(name: str) -> None:
    op = getattr(torch.ops.npu, name)
    for seed in range(3):
        eager, captured = on("npu", ARGUMENTS[name](Draw(seed))), on("npu", ARGUMENTS[name](Draw(seed)))
        expected = op(*eager.args, **eager.kwargs)
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            found = op(*captured.args, **captured.kwargs)
        graph.replay()
        same = [pytree.tree_leaves(each) for each in ((expected, eager.args), (found, captured.args))]
        for a, b in zip(*same, strict=True):
            assert torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) else a == b
