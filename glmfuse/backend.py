"""The entry point of `torch.compile(model, backend="glmfuse")`: wires the stages together."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TensorifyScalarRestartAnalysis

from glmfuse import dialects
from glmfuse.breaks import tell
from glmfuse.capture import capture_model, static_inputs, weights_among
from glmfuse.errors import ExpectationError, OptionError, UnavailableError
from glmfuse.fuse import Fusion, fuse
from glmfuse.lowering.engines import Engine, Handoff, choose_engine
from glmfuse.lowering.target import Target
from glmfuse.lowering.targets import TARGETS, reference_for
from glmfuse.lowering.weights.hoist import SHARE, Derived, hoist
from glmfuse.lowering.weights.registry import bind
from glmfuse.matching.pattern import Pattern
from glmfuse.options import CONSOLE, Options
from glmfuse.patterns import PATTERNS
from glmfuse.report.files import write_graph
from glmfuse.report.report import GraphReport, Report
from glmfuse.report.text import render_graph

log = logging.getLogger("glmfuse")

_GRAD = (
    "glmfuse compiles for inference, and this model's inputs require grad: it is compiled without fusion. "
    "Call it under torch.no_grad() or torch.inference_mode() to have it fused."
)


def compile_graph(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | Options | None = None,
) -> Callable[..., Any]:
    """Dynamo's call for each graph of a model; raises GlmfuseError for what the user can mend."""
    if mode not in (None, "default"):
        raise OptionError(f"backend 'glmfuse' has no mode {mode!r}; pass options={{...}} instead.")
    parsed = Options.parse(options)
    passed_over: list[str] = []
    engine = choose_engine(parsed.engine, example_inputs, passed_over.append)
    fusion = fusion_for(parsed, engine)
    tell(fusion.report)
    graph = fusion.report.new_graph()
    graph.engine = engine.name
    graph.notes.extend(passed_over)
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
        return _unfused(graph_module, example_inputs, engine, parsed, graph)
    try:
        compiler = _Compiler(fusion, engine, graph, example_inputs)
        return capture_model(graph_module, example_inputs, compiler, compiler.unfused, engine.decompositions())
    except TensorifyScalarRestartAnalysis:
        fusion.report.graphs.remove(graph)  # Dynamo traces it again, with floats as constants
        raise


def fusion_for(options: Options, engine: Engine | None = None) -> Fusion:
    """The patterns and targets that these options ask for, and that the engine can call."""
    patterns: tuple[Pattern, ...] = (*PATTERNS, *options.patterns)
    options.check_patterns(pattern.name for pattern in patterns)
    report = options.report if isinstance(options.report, Report) else Report()
    dialects.load(report.note)
    return Fusion(options, patterns, _targets(options, patterns, report, engine), report)


class _Compiler:
    """Called by AOT with the aten graph: fuse it, report, and hand it to the engine."""

    def __init__(self, fusion: Fusion, engine: Engine, report: GraphReport, dynamo_inputs: Sequence[Any]) -> None:
        self.fusion = fusion
        self.engine = engine
        self.report = report
        self.dynamo_inputs = dynamo_inputs

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        options = self.fusion.options
        self.report.bodies.clear()
        fuse(gm, self.fusion, self.report)
        try:
            check_expectation(self.report, options)
            derived = self.derive(gm) if options.frozen else ()
            with self.report.timed("engine"):
                compiled = self.engine.compile(self.handoff(gm, example_inputs, derived))
            return bind(compiled, derived) if derived else compiled
        finally:
            publish(self.report, options)

    def handoff(self, gm: fx.GraphModule, inputs: Sequence[Any], derived: Sequence[Derived] = ()) -> Handoff:
        """The graph for the engine; values derived of weights are inputs that stay where they are, like these."""
        every = [*inputs, *(item.fake for item in derived)]
        static = static_inputs(len(inputs)) | set(range(len(inputs), len(every)))
        return Handoff(gm, every, static, self.fusion.options.engine_options)

    def derive(self, gm: fx.GraphModule) -> tuple[Derived, ...]:
        """Take what depends on weights alone out of the graph, and say how much that is."""
        with self.report.timed("weights"):
            derived, left = hoist(gm, weights_among(gm.graph, self.dynamo_inputs))
        made = f"{len(derived)} values made of weights once, {sum(item.bytes for item in derived)} bytes"
        self.report.notes.append(made + (f"; {left} more would take over {SHARE:.0%} of the weights" if left else ""))
        return derived

    def unfused(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """A forward or backward graph of a model that enables grad inside: handed on as it is."""
        if _GRAD not in self.report.notes:
            self.report.notes.append(_GRAD)
            warnings.warn(_GRAD, stacklevel=2)
            check_expectation(self.report, self.fusion.options)
        return self.engine.compile(self.handoff(gm, example_inputs))


def _unfused(
    graph_module: fx.GraphModule, inputs: Sequence[Any], engine: Engine, options: Options, graph: GraphReport
) -> Callable[..., Any]:
    warnings.warn(_GRAD, stacklevel=2)
    graph.notes.append(_GRAD)
    publish(graph, options)
    check_expectation(graph, options)
    return engine.compile_unfused(graph_module, inputs)


def publish(graph: GraphReport, options: Options) -> None:
    """Send a graph's report where the options and the log levels want it."""
    log.info("%s", _Lazy(graph))
    if options.report == CONSOLE:
        print(render_graph(graph), file=sys.stderr)
    elif isinstance(options.report, str):
        log.info("report written to %s.*", write_graph(graph, options.report))


def check_expectation(graph: GraphReport, options: Options) -> None:
    """Raise ExpectationError when a pattern does not have the number of sites demanded."""
    counts = graph.count()
    wrong = {name: number for name, number in options.expect.items() if counts[name] != number}
    if not wrong:
        return
    lines = [f"graph {graph.index} does not have the expected sites:"]
    for name, number in wrong.items():
        lines.append(f"  {name}: expected {number}, found {counts[name]}")
        if (miss := graph.closest_miss(name)) is not None:
            lines.append(f"    closest miss: stopped at {miss.stage}: expected {miss.expected}; found {miss.found}")
            lines.append(f"    at {miss.node}  {miss.source}".rstrip())
    lines.extend(f"  note: {note}" for note in graph.notes)
    raise ExpectationError("\n".join(lines))


def _targets(
    options: Options, patterns: Sequence[Pattern], report: Report, engine: Engine | None
) -> tuple[Target, ...]:
    known = {target.name: target for target in (*TARGETS, reference_for(patterns))}
    if options.targets is None:
        usable = []
        for target in known.values():
            reason = target.unavailable() or target.not_by_default() or _not_called_by(engine, target)
            if reason is None:
                usable.append(target)
            else:
                report.note(f"target {target.name!r} passed over: {reason}")
        return tuple(usable)
    return tuple(_target(item, known, engine) for item in options.targets)


def _target(item: Any, known: Mapping[str, Target], engine: Engine | None) -> Target:
    if not isinstance(item, Target) and item not in known:
        raise OptionError.unknown("target", [item], known)
    target = item if isinstance(item, Target) else known[item]
    if target is not item and (reason := target.unavailable()) is not None:
        raise UnavailableError("target", target.name, reason)
    if (reason := _not_called_by(engine, target)) is not None:
        raise UnavailableError("target", target.name, f"{reason}; leave it out, or use engine 'npugraph_ex'")
    return target


def _not_called_by(engine: Engine | None, target: Target) -> str | None:
    """Why an engine cannot have this target's ops in its graph, or None."""
    if engine is None or engine.launches or target.inlined is not None:
        return None
    return f"its ops launch kernels of their own, and engine {engine.name!r} has no operator for them"


class _Lazy:
    """A graph's report, rendered only when a log handler wants it."""

    def __init__(self, graph: GraphReport) -> None:
        self.graph = graph

    def __str__(self) -> str:
        return render_graph(self.graph)
