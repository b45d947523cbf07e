"""One launch: the kernel for these arguments, its flat tensors, and the way back to the pattern's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto.chip import Chip
from glmfuse.lowering.pypto.process import KernelRef, Mode, Outcome, Request, run
from glmfuse.matching.select import Request as SiteRequest

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with the tensors that it is called with.

    inputs: contiguous, in the kernel's order. outputs: shape and dtype of each. finish: from the kernel's
    outputs to the pattern's, reshaped and laid out as the pattern function's. matrices: places of the inputs that
    the kernel reads by matrix products alone; on an NPU these may lie in NZ.
    """

    kernel: KernelRef
    inputs: tuple[Tensor, ...]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    finish: Callable[[tuple[Tensor, ...]], Result]
    matrices: frozenset[int] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute; PyPTO takes no empty tensor."""
        return any(tensor.numel() == 0 for tensor in self.inputs)


@dataclass(frozen=True, slots=True)
class PyptoKernel:
    """What a pattern needs to run as a PyPTO kernel.

    limits: None, or why the kernel cannot take such a site, with the number that exceeds.
    launch: the launch for a pattern's arguments, by name. spared: launches that its pattern is worth beyond
    the operators that spell it here. rounds_alike: whether it rounds where its pattern
    function rounds; one that rounds less is only held to be as near to the exact result.
    """

    limits: Callable[[Chip, SiteRequest], str | None]
    launch: Callable[..., Launch]
    spared: int = 0
    rounds_alike: bool = True


def interpret(launch: Launch, mode: Mode = Mode.INTERPRET) -> Result:
    """Run a launch in PyPTO's interpreter on this CPU; KernelError with pypto's words when it fails."""
    if launch.is_empty:
        return launch.finish(tuple(torch.empty(shape, dtype=dtype) for shape, dtype in launch.outputs))
    return launch.finish(checked(run(request_of(launch, mode)), launch, mode).tensors)


def request_of(launch: Launch, mode: Mode, *, trace: bool = False) -> Request:
    """The launch as the worker is asked for it."""
    inputs = tuple(tensor.detach().cpu().contiguous() for tensor in launch.inputs)
    return Request(launch.kernel, mode, inputs, launch.outputs, trace)


def checked(outcome: Outcome, launch: Launch, mode: Mode) -> Outcome:
    """The outcome of a run that succeeded; KernelError otherwise."""
    if outcome.error is not None:
        raise KernelError(launch.kernel.builder, mode.value, outcome.error, outcome.log)
    return outcome
