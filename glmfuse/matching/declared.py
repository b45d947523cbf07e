"""What a declared pattern must hold before there are ops of it: each refusal is a PatternError that names the line."""

from __future__ import annotations

from glmfuse.canonicalize import INPUT, Term
from glmfuse.canonicalize.schema import is_function_of_values, is_pure
from glmfuse.canonicalize.term import describe_op
from glmfuse.errors import PatternError
from glmfuse.matching.examples import EXAMPLE_DTYPE, example_trace, variants_with
from glmfuse.matching.layout import Layout
from glmfuse.matching.pattern import Pattern, Variant
from glmfuse.matching.search import captured_names, search_graph
from glmfuse.matching.traced import Traced, live_terms


def a_variant(made: Pattern, absent: frozenset[str]) -> Variant:
    """The first that there is without these tensors."""
    if (found := next(variants_with(made, absent), None)) is None:
        raise PatternError(made.name, made.where, f"its `require` refuses every call without {sorted(absent)}")
    return found


def try_trace(made: Pattern, variant: Variant) -> Traced:
    """The first trace of a variant that has both."""
    try:
        traced = example_trace(made, variant, EXAMPLE_DTYPE, 0)
        example_trace(made, variant, EXAMPLE_DTYPE, 1)
    except PatternError:
        raise
    except Exception as error:
        raise PatternError(made.name, made.where, f"tracing it ({variant}) fails: {error}") from error
    return traced


def check_traced(made: Pattern, traced: Traced) -> None:
    """What the fullest call must be: pure, of fresh results, reading each argument that it is said to read."""
    _check_outputs(made, traced)
    _check_updates(made, traced)
    _check_carried(made, traced)


def _check_outputs(made: Pattern, traced: Traced) -> None:
    outputs = traced.outputs
    if not outputs or not all(isinstance(output, Term) for output in outputs):
        raise PatternError(made.name, made.where, "it must return a tensor or a tuple of tensors")
    if any(output.op is INPUT for output in outputs):
        raise PatternError(made.name, made.where, "it returns one of its arguments; outputs are fresh tensors")
    for term in traced.canonical.terms:
        if term.op is not INPUT and not is_pure(term.op, term.args):
            raise PatternError(made.name, made.where, f"{describe_op(term.op)} writes or draws at random")
        if term.op is not INPUT and not is_function_of_values(term.op, term.args):
            raise PatternError(made.name, made.where, f"{describe_op(term.op)} reads memory, not values")
    for output in outputs:
        if not any(term.op is INPUT for term in live_terms((output,))):
            raise PatternError(made.name, made.where, "one of its outputs depends on no argument")
    storages = [term.val.untyped_storage()._cdata for term in (*traced.inputs.values(), *dict.fromkeys(outputs))]
    if len(set(storages)) != len(storages):
        raise PatternError(made.name, made.where, "an output shares memory with an argument or another output")
    live = set(traced.live())
    if unused := [name for name, term in traced.inputs.items() if term not in live and name not in made.unread]:
        raise PatternError(made.name, made.where, f"the result does not depend on {unused}")


def _check_updates(made: Pattern, traced: Traced) -> None:
    if made.updates is None:
        return
    updated = traced.inputs.get(made.updates)
    if updated is None or len(traced.outputs) != 1 or Layout.of(updated.val) != Layout.of(traced.outputs[0].val):
        problem = f"updates= names {made.updates!r}, which is no tensor argument laid out as the one output"
        raise PatternError(made.name, made.where, problem)
    if made.parameters[0].name != made.updates:
        problem = f"updates= names {made.updates!r}, which must be the first argument: engines look for it there"
        raise PatternError(made.name, made.where, problem)


def _check_carried(made: Pattern, traced: Traced) -> None:
    optional = {p.name for p in made.parameters if p.optional}
    live = set(traced.live())
    if wrong := sorted(name for name in made.carried if name not in optional or traced.inputs[name] in live):
        problem = f"carried= names {wrong}, not optional tensors that no result depends on"
        raise PatternError(made.name, made.where, problem)


def check_scalars(made: Pattern, variant: Variant) -> None:
    """Each number that the function is given must be told by every site."""
    graph = search_graph(made, variant, EXAMPLE_DTYPE)
    needed = {p.name for p in made.parameters if p.kind in ("int", "float", "dtype")}
    used = needed - _unused_scalars(made, variant)
    if missing := used - captured_names(graph):
        problem = f"the value of {sorted(missing)} shows as no literal of the graph ({variant}), so no site tells it"
        raise PatternError(made.name, made.where, problem)


def _unused_scalars(made: Pattern, variant: Variant) -> set[str]:
    """Scalars that a flag or an absent tensor makes idle cannot be told, and need not be."""
    if not variant.absent and all(value for _, value in variant.flags):
        return set()
    full = captured_names(search_graph(made, a_variant(made, frozenset()), EXAMPLE_DTYPE))
    return set(full - captured_names(search_graph(made, variant, EXAMPLE_DTYPE)))
