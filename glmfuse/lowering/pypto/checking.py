"""Kernels against their pattern functions: compiled through all passes, their numbers by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glmfuse.capture import as_tuple
from glmfuse.errors import KernelError
from glmfuse.lowering.pypto.chip import ASCEND_910B, Chip
from glmfuse.lowering.pypto.family import Geometry, arguments, geometry
from glmfuse.lowering.pypto.launch.launch import Launch, PyptoKernel, Result, checked, interpret, request_of
from glmfuse.lowering.pypto.process import PASSED, PASSES, Mode, run
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal
from glmfuse.lowering.tolerance import KERNEL_RELATIVE_L2
from glmfuse.patterns import BY_NAME

_TIE = 1e-5
"""Router scores nearer than this may change places: both orders are right."""

_GUARD = 8
"""Rows: fewer than the smallest block of tokens that is not full."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kernel at one shape: the relative L2 error of its worst output, or why it failed or does not take it.

    Of a kernel that does not round as its pattern function, `error` is against that function in fp64, and
    `allowed` that function's own.
    """

    pattern: str
    shape: str
    tokens: int
    error: float
    allowed: float
    failure: str = ""
    refused: str = ""

    @property
    def passed(self) -> bool:
        """Whether the kernel compiled through all passes and agrees with the pattern function."""
        return not self.refused and not self.failure and self.error <= self.allowed


def check(
    pattern: str,
    shape: str | Geometry,
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    kernel: PyptoKernel | None = None,
    *,
    passes: bool = False,
    chip: Chip = ASCEND_910B,
    function: Callable[..., Any] | None = None,
) -> Check:
    """Compile a kernel, by default the registered one, through all passes and compare it with its pattern.

    shape: a name of the family, or sizes of your own. passes: interpret it after each pass, too, which takes
    minutes at real sizes. function: what to compare it with, of the pattern's arguments, by default its function.
    """
    at, shape = (geometry(shape), shape) if isinstance(shape, str) else (shape, "given")
    values = arguments(pattern, at, tokens, dtype, seed)
    kernel = kernel or KERNELS[pattern]
    exact = values if kernel.rounds_alike else {name: widened(value) for name, value in values.items()}
    allowed = (
        KERNEL_RELATIVE_L2[dtype]
        if kernel.rounds_alike
        else distance(pattern, BY_NAME[pattern].function(**values), exact)
    )
    if (reason := refusal(chip, kernel, pattern, values)) is not None:
        return Check(pattern, shape, tokens, float("nan"), allowed, refused=reason)
    launch = _guarded(kernel.launch(chip, **values))
    try:
        found = interpret(launch, Mode.COMPILE)
        wrong = _wrong_pass(launch) if passes else ""
    except KernelError as error:
        return Check(pattern, shape, tokens, float("inf"), allowed, error.reason.splitlines()[0])
    return Check(pattern, shape, tokens, distance(pattern, found, exact, function), allowed, wrong)


def _wrong_pass(launch: Launch) -> str:
    """The first pass that changed the numbers or could not be interpreted; a pass without a verdict is no success."""
    verdicts = checked(run(request_of(launch, Mode.VERIFY)), launch, Mode.VERIFY).passes
    if len(verdicts) < PASSES:
        return f"only {len(verdicts)} of {PASSES} passes have a verdict"
    return next((f"pass {name}: {verdicts[name]}" for name in sorted(verdicts) if verdicts[name] != PASSED), "")


def _guarded(launch: Launch) -> Launch:
    """The launch with rows behind every output that no kernel may write."""

    def finish(made: tuple[Tensor, ...]) -> Result:
        for index, tensor in enumerate(made):
            if tensor[-_GUARD:].any():
                raise KernelError(launch.kernel.builder, "check", f"output {index} is written behind its last row")
        return launch.finish(tuple(tensor[:-_GUARD] for tensor in made))

    outputs = tuple(((shape[0] + _GUARD, *shape[1:]), dtype) for shape, dtype in launch.outputs)
    return replace(launch, outputs=outputs, finish=finish)


def widened(value: Any) -> Any:
    """An argument in fp64, if it is a tensor of floats."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def distance(pattern: str, found: Any, values: Mapping[str, Any], function: Callable[..., Any] | None = None) -> float:
    """The relative L2 error of the worst output; infinite where a router chose other experts without a tie.

    function: of the pattern's arguments, by default the pattern's.
    """
    expected = (function or BY_NAME[pattern].function)(**values)
    ours, theirs = as_tuple(found), as_tuple(expected)
    routed = 0.0
    if BY_NAME[pattern].unordered:
        routed, ours, theirs = _router_distance(ours[:2], theirs[:2], values), ours[2:], theirs[2:]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not _is_one_rounding(a, b)]
    return max((routed, *(_relative(a, b) for a, b in pairs)))


def _relative(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.double(), theirs.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def _is_one_rounding(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the tensors differ by one rounding, or one code: in an element, or in the two that rotary makes of it.

    A sum that falls on the other side of a rounding boundary shows in a small tensor's relative error.
    """
    a, b = ours.double(), theirs.double()
    gap = (a - b).abs()
    unit = torch.finfo(theirs.dtype).eps * b.abs().max() if theirs.is_floating_point() else 1
    return bool((gap > 0).sum() <= 2 and gap.max() <= unit)


def _router_distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], values: Mapping[str, Any]) -> float:
    """Experts come in no order; ids must agree but where two scores are as good as equal."""
    experts = values["bias"].shape[0]
    spread = [torch.zeros(len(ids), experts).scatter(1, ids, weights) for weights, ids in (ours, theirs)]
    differs = ((spread[0] != 0) != (spread[1] != 0)).any(-1)
    logits = values["logits"].double() if "logits" in values else _logits(values)
    scores = (logits.sigmoid() + values["bias"].double()).sort(-1, descending=True).values
    gap = scores[:, values["top_k"] - 1] - scores[:, values["top_k"]]
    if bool((differs & (gap > _TIE)).any()):
        return float("inf")
    return _relative(spread[0][~differs], spread[1][~differs])


def _logits(values: Mapping[str, Any]) -> Tensor:
    """Of a router that has its product with it, in fp64."""
    w = values["w_router"] if "w_router" in values else values["w"]
    return values["x"].double() @ w.double().t()
