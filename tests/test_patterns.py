"""Every registered pattern: it finds itself, its op is its function, its fake tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmfuse.canonicalize import canonicalize
from glmfuse.canonicalize.term import INPUT, Term
from glmfuse.capture import Fresh
from glmfuse.fuse import _TRACES
from glmfuse.lowering.tolerance import allowed
from glmfuse.lowering.verify import difference
from glmfuse.matching import dims as dims_of
from glmfuse.matching.examples import example_scalars, example_sizes, takes, variants
from glmfuse.matching.find import find
from glmfuse.matching.pattern import Pattern, Variant, patterns_as_ops
from glmfuse.matching.traced import live_terms, trace_pattern
from glmfuse.patterns import PATTERNS
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    pytest.param(pattern, variant, id=f"{pattern.name}-{variant}")
    for pattern in PATTERNS
    for variant in variants(pattern)
]
OWN_CASES = [case for case in CASES if not case.values[1].spelling]


def in_dtypes(wanted: Callable[[Variant, bool], tuple[torch.dtype, ...]]) -> list[Any]:
    """The cases in these dtypes of each, given whether it is the first of its pattern and spelling."""
    seen: set[tuple[str, str]] = set()
    made = []
    for pattern, variant in (case.values for case in CASES):
        is_first = (pattern.name, variant.spelling) not in seen
        seen.add((pattern.name, variant.spelling))
        for dtype in wanted(variant, is_first):
            if takes(pattern, variant, dtype):
                made.append(pytest.param(pattern, variant, dtype, id=f"{pattern.name}-{variant}-{dtype}"))
    return made


def every_dtype_once(variant: Variant, is_first: bool) -> tuple[torch.dtype, ...]:
    """All dtypes for a pattern's first variant; the others differ from it in their graph, which bf16 shows."""
    return DTYPES if is_first else (torch.bfloat16,)


def every_graph(variant: Variant, is_first: bool) -> tuple[torch.dtype, ...]:
    """Without casts a graph is another one, so fp32 for all; fp16 has the graph of bf16."""
    return DTYPES if is_first else (torch.float32, torch.bfloat16)


def example(pattern: Pattern, variant: Variant, dtype: torch.dtype, which: int = 0) -> dict[str, Any]:
    """Real arguments: random tensors of the pattern's own example sizes."""
    values = example_sizes(pattern, variant, which)
    arguments: dict[str, Any] = {p.name: None for p in pattern.parameters}
    for parameter in pattern.parameters:
        if parameter.is_tensor and parameter.name not in variant.absent:
            shape = dims_of.evaluate(parameter.sizes_without(variant.absent), values, which)
            arguments[parameter.name] = _draw(shape, pattern.dtypes.get(parameter.name, dtype))
    return {**arguments, **example_scalars(pattern, variant, values, which)}


def _draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers, int8 and bytes of all that there are.

    Other integers are ids, lengths or positions that every size allows, in one dimension distinct.
    """
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    if dtype in (torch.int8, torch.uint8):
        return torch.randint(0, 256, shape, dtype=torch.uint8).view(dtype)
    return (1 + torch.randperm(*shape) if len(shape) == 1 else torch.randint(1, 4, shape)).to(dtype)


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize(
    ("pattern", "variant", "dtype"),
    in_dtypes(lambda variant, is_first: () if variant.spelling else every_dtype_once(variant, is_first)),
)
def test_the_op_is_the_function(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    arguments = example(pattern, variant, dtype)
    found = as_tuple(pattern.call_op(arguments))
    expected = as_tuple(pattern.function(**arguments))
    assert same_bits(found, expected)
    given = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*given, *found)]
    assert len(set(storages)) == len(storages), "outputs are fresh and apart"


@pytest.mark.parametrize(
    ("pattern", "variant", "dtype"),
    in_dtypes(lambda variant, is_first: every_dtype_once(variant, is_first) if variant.spelling else ()),
)
def test_a_spelling_is_the_same_function(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    arguments = example(pattern, variant, dtype)
    found = as_tuple(pattern.function_of(variant.spelling)(**arguments))
    for mine, theirs in zip(found, as_tuple(pattern.function(**arguments)), strict=True):
        assert mine.dtype == theirs.dtype
        assert difference(mine, theirs)[1] <= allowed(mine.dtype)


@pytest.mark.parametrize(("pattern", "variant"), OWN_CASES)
def test_opcheck(pattern: Pattern, variant: Variant) -> None:
    arguments = example(pattern, variant, torch.bfloat16)
    overload = pattern.overload(arguments)
    values = tuple(arguments[argument.name] for argument in overload._schema.arguments)
    utilities = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(isinstance(value, torch.Tensor) and value.dtype == torch.float8_e4m3fn for value in values):
        utilities.remove("test_schema")  # it multiplies what it is given, and torch's CPU has no product of these
    torch.library.opcheck(overload, values, test_utils=utilities)


@pytest.mark.parametrize(("pattern", "variant", "dtype"), in_dtypes(every_graph))
def test_it_finds_itself_and_changes_no_bit(pattern: Pattern, variant: Variant, dtype: torch.dtype) -> None:
    arguments = example(pattern, variant, dtype, which=int(dtype == torch.bfloat16))
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in arguments.items() if name not in tensors}
    captured = capture(lambda **given: as_tuple(pattern.function_of(variant.spelling)(**given, **rest)), **tensors)[0]
    module = captured.module()
    report = run_stages(module, only=(pattern.name,))
    assert report.count()[pattern.name] == 1
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


@pytest.mark.parametrize(("pattern", "variant"), CASES)
def test_model_and_pattern_are_traced_alike(pattern: Pattern, variant: Variant) -> None:
    """AOT, for the model, and the tracer under it, for patterns, give one spelling."""
    arguments = example(pattern, variant, torch.bfloat16)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in arguments.items() if name not in tensors and value is not None}
    function = pattern.function_of(variant.spelling)
    by_aot = capture(lambda *given: as_tuple(function(**_all(pattern, tensors, given), **rest)), *tensors.values())
    fresh = Fresh()
    fakes = {n: fresh.empty(tuple(t.shape), t.stride(), t.dtype, t.device) for n, t in tensors.items()}
    by_tracer = trace_pattern(pattern, fakes, rest, as_ops=False, function=function)
    assert _spelling(canonicalize(by_aot[0].graph_module.graph).outputs) == _spelling(by_tracer.outputs)


def _all(pattern: Pattern, tensors: dict[str, torch.Tensor], given: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    absent = {p.name: None for p in pattern.parameters if p.is_tensor and p.name not in tensors}
    return {**absent, **dict(zip(tensors, given, strict=True))}


def _spelling(outputs: tuple[Any, ...]) -> list[str]:
    """The live terms in the order in which the outputs need them, with numbers for names."""
    number = {term: f"%{index}" for index, term in enumerate(live_terms(outputs))}

    def show(arg: Any) -> str:
        if isinstance(arg, Term):
            return number[arg]
        return f"({', '.join(map(show, arg))})" if isinstance(arg, tuple) else str(arg)

    return [f"{term} {show(() if term.op is INPUT else term.args)}" for term in number]


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
        inner = trace_pattern(rms_norm, {"x": x, "w": w}, {"eps": 1e-5})
    assert len([term for term in inner.canonical.terms if term.op is not INPUT]) == 6
    assert find(inner.canonical, (rms_norm,), _TRACES).sites
