"""A pattern that is defined wrongly is refused where it is defined, with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glmfuse import pattern, require
from glmfuse.errors import PatternError
from glmfuse.matching import traced
from glmfuse.matching.examples import variants
from glmfuse.matching.record import record
from glmfuse.matching.register import spelling_of
from glmfuse.matching.search import distinct_graphs
from tests.support.graphs import capture, outputs_and_writes, run_stages, same_bits


def bad_dims() -> None:
    @pattern(dims={"x": "... H", "w": "H +"})
    def wrong_dims(x: Tensor, w: Tensor) -> Tensor:
        return x * w


def no_dims() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_missing(x: Tensor, w: Tensor) -> Tensor:
        return x * w


def strange_dims() -> None:
    @pattern(dims={"x": "... H", "y": "H"})
    def wrong_strange(x: Tensor) -> Tensor:
        return torch.exp(x)


def strange_type() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_type(x: Tensor, name: str) -> Tensor:
        return torch.exp(x)


def returns_argument() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_identity(x: Tensor) -> Tensor:
        return x.view(x.shape)


def returns_nothing() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_nothing(x: Tensor) -> Any:
        return ()


def writes() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_writes(x: Tensor) -> Tensor:
        return x.mul_(2) + 1


def draws() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_random(x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


def raises() -> None:
    @pattern(dims={"x": "... H", "w": "O"})
    def wrong_shapes(x: Tensor, w: Tensor) -> Tensor:
        return x * w


def unused() -> None:
    @pattern(dims={"x": "... H", "w": "H"})
    def wrong_unused(x: Tensor, w: Tensor) -> Tensor:
        return torch.exp(x)


def hidden_scalar() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_scalar(x: Tensor, scale: float) -> Tensor:
        return x * (2 * scale)


def two_graphs() -> None:
    @pattern(dims={"x": "T H"})
    def wrong_paths(x: Tensor) -> Tensor:
        return torch.exp(x) if x.shape[0] > 18 else torch.cos(x)


def not_optional() -> None:
    @pattern(dims={"x": "... H", "w": "H"}, together=("w",))
    def wrong_together(x: Tensor, w: Tensor) -> Tensor:
        return x * w


def twice() -> None:
    @pattern(dims={"x": "... H"})
    def rms_norm(x: Tensor) -> Tensor:
        return torch.exp(x)


def optional_number() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_optional(x: Tensor, scale: float | None) -> Tensor:
        return x * 2


def constant_output() -> None:
    @pattern(dims={"x": "... H"})
    def wrong_constant(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(x) + 1, torch.zeros(4)


def view_of_argument() -> None:
    @pattern(dims={"x": "A B"})
    def wrong_view(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(x) * 2, x.transpose(-1, -2)


def reads_memory() -> None:
    @pattern(dims={"x": "A B"})
    def wrong_memory(x: Tensor) -> Tensor:
        return torch.exp(x).as_strided((2, 2), (1, 1)) + 1


def carried_but_read() -> None:
    @pattern(dims={"x": "... H", "y": "H"}, carried=("y",))
    def wrong_carried(x: Tensor, y: Tensor | None) -> Tensor:
        return torch.exp(x) if y is None else torch.exp(x) * y


def carried_always() -> None:
    @pattern(dims={"x": "... H", "y": "H"}, carried=("y",))
    def wrong_cargo(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(x)


CASES: list[tuple[Callable[[], None], str]] = [
    (bad_dims, "dims of 'w'"),
    (no_dims, "no dims are declared for 'w'"),
    (strange_dims, r"dims are declared for \['y'\]"),
    (strange_type, "argument 'name' must be a Tensor, float, int, bool or torch.dtype"),
    (returns_argument, "returns one of its arguments"),
    (returns_nothing, "must return a tensor"),
    (writes, "writes or draws at random"),
    (draws, "writes or draws at random"),
    (raises, "tracing it .* fails"),
    (unused, r"does not depend on \['w'\]"),
    (hidden_scalar, r"the value of \['scale'\] shows as no literal"),
    (two_graphs, "another graph at other sizes"),
    (not_optional, r"together= names \['w'\]"),
    (twice, "registered already"),
    (optional_number, "argument 'scale' is no tensor and cannot be left out"),
    (constant_output, "one of its outputs depends on no argument"),
    (view_of_argument, "shares memory with an argument"),
    (reads_memory, "reads memory, not values"),
    (carried_but_read, r"carried= names \['y'\]"),
    (carried_always, r"carried= names \['y'\]"),
]


@pytest.mark.parametrize(("define", "message"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_wrong_definition_is_refused_with_its_line(define: Callable[[], None], message: str) -> None:
    import glmfuse.patterns  # noqa: F401  the names that are taken

    with pytest.raises(PatternError, match=message) as caught:
        define()
    line = define.__code__.co_firstlineno
    assert any(f"{__file__}:{line + offset}" in str(caught.value) for offset in (1, 2))


def test_a_constraint_on_no_argument_is_refused() -> None:
    @pattern(dims={"x": "... H"})
    def constrained_exp(x: Tensor) -> Tensor:
        return torch.exp(x) + 1

    with pytest.raises(PatternError, match=r"takes \['y'\], not arguments"):

        @constrained_exp.constraint
        def _(y: Tensor) -> None:
            require(y.dim() == 2, "two dimensions", y.dim())


def test_a_function_for_one_dtype_has_sites_of_that_alone() -> None:
    @pattern(dims={"x": "... H"})
    def half_exp(x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError("bf16 alone")
        return torch.exp(x) * 0.25 + 1

    full = next(variants(half_exp))
    assert distinct_graphs(half_exp, (full,), (torch.bfloat16,))
    assert not distinct_graphs(half_exp, (full,), (torch.float32,))


def test_a_spelling_takes_the_arguments_of_its_pattern() -> None:
    @pattern(dims={"x": "... H"})
    def spelled_exp(x: Tensor, up: bool) -> Tensor:
        return torch.exp(x) + 1 if up else torch.exp(-x)

    with pytest.raises(PatternError, match="must take the pattern's arguments"):

        @spelling_of(spelled_exp)
        def renamed(y: Tensor, up: bool) -> Tensor:
            return torch.exp(y)

    with pytest.raises(PatternError, match="takes no arguments of the pattern"):

        @spelling_of(spelled_exp)
        def refusing(x: Tensor, up: bool) -> Tensor:
            require(False, "nothing")
            return x

    @spelling_of(spelled_exp)
    def reversed_sum(x: Tensor, up: bool) -> Tensor:
        require(up, "only upwards")
        return torch.add(torch.ones_like(x), torch.exp(x))

    spelled = [variant for variant in variants(spelled_exp) if variant.spelling]
    assert [(variant.spelling, dict(variant.flags)) for variant in spelled] == [("reversed_sum", {"up": True})]
    with pytest.raises(PatternError, match="'reversed_sum' is registered already"):
        spelling_of(spelled_exp)(reversed_sum)


def test_a_dtype_is_an_argument_that_sites_tell() -> None:
    @pattern(dims={"x": "... H"})
    def narrow_exp(x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.exp(x).to(torch.float32).add(1.5).to(dtype)

    assert "ScalarType dtype" in str(narrow_exp.overload({})._schema)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        captured = capture(lambda x, dtype=dtype: narrow_exp.function(x, dtype), torch.randn(3, 8).bfloat16())[0]
        module = captured.module()
        report = run_stages(module, patterns=(narrow_exp,))
        (row,) = (row for row in report.rows() if row.pattern == "narrow_exp")
        assert (row.status, row.scalars) == ("chosen", {"dtype": str(dtype)})
        ours, theirs = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
        assert same_bits(ours, theirs)


def test_what_is_carried_is_handed_to_the_spelling_that_reads_it() -> None:
    @pattern(dims={"x": "... H", "note": "H"}, carried=("note",))
    def carrying_exp(x: Tensor, note: Tensor | None) -> Tensor:
        return torch.exp(x) * 3 + 1

    @spelling_of(carrying_exp)
    def with_note(x: Tensor, note: Tensor | None) -> Tensor:
        require(note is not None, "a note")
        return torch.lerp(torch.exp(x) * 3 + 1, note, 0.0)

    x, note = torch.randn(3, 8), torch.randn(8)
    for function, held in ((carrying_exp.function, False), (with_note, True)):
        captured = capture(function, x, note)[0]
        module = captured.module()
        assert run_stages(module, patterns=(carrying_exp,)).count("chosen")["carrying_exp"] == 1
        assert sum(node.target is torch.ops.aten.lerp.Scalar for node in module.graph.nodes) == held
        ours, theirs = (outputs_and_writes(graph, captured.arguments()) for graph in (module, captured.module()))
        assert same_bits(ours, theirs)


def test_tracing_that_was_interrupted_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """glmfuse's own patterns are traced in the seconds of the first compilation."""

    def function(x: Tensor, w: Tensor | None) -> Tensor:
        """X exp(x), scaled or not."""
        return x.exp() * x if w is None else x.exp() * x * w

    monkeypatch.setattr(function, "__module__", "glmfuse.patterns.toy")
    monkeypatch.setattr(function, "__name__", "toy_interrupted")
    made = pattern(dims={"x": "... H", "w": "H"})(function)
    calls = iter((None, None, KeyboardInterrupt))

    def interrupted(*given: Any) -> Any:
        if (error := next(calls, None)) is not None:
            raise error
        return record(*given)

    monkeypatch.setattr(traced, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.overloads  # noqa: B018
    assert set(made.overloads) == {frozenset(), frozenset({"w"})}
    x = torch.randn(3, 8)
    assert torch.equal(made.call_op({"x": x, "w": None}), function(x, None))
