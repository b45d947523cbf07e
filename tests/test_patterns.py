"""Every registered pattern: it finds itself, its op is its function, its fake tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from glmfuse.canonicalize import canonicalize
from glmfuse.canonicalize.term import INPUT
from glmfuse.capture import Fresh, as_tuple
from glmfuse.fuse import _TRACES
from glmfuse.lowering.tolerance import allowed
from glmfuse.lowering.verify import difference
from glmfuse.matching.find import find
from glmfuse.matching.pattern import Pattern, Variant, patterns_as_ops
from glmfuse.matching.traced import record_pattern, trace_pattern
from glmfuse.patterns import PATTERNS
from tests.support.cases import CASES, OVERLOADS, every_dtype_once, every_graph, example, in_dtypes
from tests.support.graphs import Captured, capture, outputs_and_writes, run_stages, same_bits
from tests.support.terms import lying, spelled


@pytest.mark.parametrize(("pattern", "variant", "dtype"), in_dtypes(every_dtype_once, spelled=False))
def test_the_op_is_the_function(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    arguments = example(pattern, variant, dtype)
    found = as_tuple(pattern.call_op(arguments))
    expected = as_tuple(pattern.function(**arguments))
    assert same_bits(found, expected)
    given = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*given, *found)]
    assert len(set(storages)) == len(storages), "outputs are fresh and apart"


@pytest.mark.parametrize(("pattern", "variant", "dtype"), in_dtypes(every_dtype_once, spelled=True))
def test_a_spelling_is_the_same_function(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    arguments = example(pattern, variant, dtype)
    found = as_tuple(pattern.function_of(variant.spelling)(**arguments))
    for mine, theirs in zip(found, as_tuple(pattern.function(**arguments)), strict=True):
        assert mine.dtype == theirs.dtype
        assert difference(mine, theirs)[1] <= allowed(mine.dtype)


@pytest.mark.parametrize(("pattern", "variant"), OVERLOADS)
def test_opcheck(pattern: Pattern, variant: Variant) -> None:
    arguments = example(pattern, variant, torch.bfloat16)
    overload = pattern.overload(arguments)
    values = tuple(arguments[argument.name] for argument in overload._schema.arguments)
    utilities = ["test_schema", "test_faketensor"]
    if not variant.absent:
        utilities.append("test_aot_dispatch_dynamic")  # slow, and no argument's absence is news to it
    if any(isinstance(value, torch.Tensor) and value.dtype == torch.float8_e4m3fn for value in values):
        utilities.remove("test_schema")  # it multiplies what it is given, and torch's CPU has no product of these
    torch.library.opcheck(overload, values, test_utils=utilities)


def standing(pattern: Pattern, variant: Variant) -> Callable[..., Any]:
    """The pattern's function as it stands in a graph: behind what makes some of its arguments, if anything does."""
    function = pattern.function_of(variant.spelling)
    return pattern.context.around(function) if pattern.context else function


@cache
def captured(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> tuple[dict[str, Any], Captured]:
    """Arguments, and the graph that the backend captures of the pattern's function on them."""
    arguments = example(pattern, variant, dtype, which=int(dtype == torch.bfloat16))
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in arguments.items() if name not in tensors}
    function = standing(pattern, variant)
    return arguments, capture(lambda **given: as_tuple(function(**given, **rest)), **tensors)[0]


@pytest.mark.parametrize(("pattern", "variant", "dtype"), in_dtypes(every_graph))
def test_it_finds_itself_and_changes_no_bit(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    graph = captured(pattern, variant, dtype)[1]
    module = graph.module()
    report = run_stages(module, only=(pattern.name,))
    assert report.count()[pattern.name] == 1
    before = outputs_and_writes(graph.module(), graph.arguments())
    assert same_bits(outputs_and_writes(module, graph.arguments()), before)


@pytest.mark.parametrize(("pattern", "variant"), CASES)
def test_model_and_pattern_are_traced_alike(pattern: Pattern, variant: Variant) -> None:
    """AOT, for the model, and the tracer under it, for patterns, give one spelling."""
    arguments, by_aot = captured(pattern, variant, torch.bfloat16)
    fakes, rest = fakes_of(arguments)
    by_tracer, _ = trace_pattern(pattern, fakes, rest, as_ops=False, function=standing(pattern, variant))
    assert spelled(canonicalize(by_aot.graph_module.graph).outputs) == spelled(by_tracer.outputs)


@pytest.mark.parametrize(("pattern", "variant"), CASES)
def test_what_is_recorded_is_what_is_traced(pattern: Pattern, variant: Variant) -> None:
    fakes, rest = fakes_of(example(pattern, variant, torch.bfloat16))
    recorded = record_pattern(pattern, fakes, rest, standing(pattern, variant))
    traced, _ = trace_pattern(pattern, fakes, rest, function=standing(pattern, variant))
    assert spelled(recorded.outputs) == spelled(traced.outputs)
    assert lying(recorded.outputs) == lying(traced.outputs)


def fakes_of(arguments: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Fake tensors laid out as these, and the arguments that are none."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    fresh = Fresh()
    fakes = {n: fresh.empty(tuple(t.shape), t.stride(), t.dtype, t.device) for n, t in tensors.items()}
    return fakes, {name: value for name, value in arguments.items() if name not in tensors and value is not None}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_pattern_says_what_it_needs(pattern: Pattern) -> None:
    text = pattern.function.__doc__ or ""
    assert "Source:" in text
    assert "->" in text
    assert pattern.level == (1 + max(p.level for p in PATTERNS if p.name in pattern.calls) if pattern.calls else 0)


def test_levels_are_not_fixed_at_two() -> None:
    from glmfuse import pattern
    from glmfuse.patterns import rms_norm, swiglu_mlp

    @pattern(dims={"x": "... H", "w": "H", "w_gate": "I H", "w_up": "I H", "w_down": "H I"})
    def norm_mlp(x, w, w_gate, w_up, w_down, eps: float):
        """Mlp(norm(x)) + x.  x [..., hidden] -> [..., hidden]."""
        return x + swiglu_mlp(rms_norm(x, w, eps), w_gate, w_up, w_down)

    assert norm_mlp.level == 2
    arguments = example(norm_mlp, Variant(), torch.bfloat16)
    eps = arguments.pop("eps")
    captured = capture(lambda **given: (norm_mlp.function(**given, eps=eps),), **arguments)[0]
    module = captured.module()
    report = run_stages(module, patterns=(norm_mlp,))
    assert dict(report.count("chosen")) == {"norm_mlp": 1}
    assert report.count("absorbed")["swiglu_mlp"] == 1
    assert report.count("absorbed")["swiglu"] == 1
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


def test_a_call_inside_a_trace_is_one_op() -> None:
    from glmfuse.patterns import rms_norm

    fresh = Fresh()
    x = fresh.empty((3, 8), None, torch.float32, torch.device("cpu"))
    w = fresh.empty((8,), None, torch.float32, torch.device("cpu"))
    with patterns_as_ops(False):
        inner, _ = trace_pattern(rms_norm, {"x": x, "w": w}, {"eps": 1e-5})
    assert len([term for term in inner.canonical.terms if term.op is not INPUT]) == 6
    assert find(inner.canonical, (rms_norm,), _TRACES).sites
