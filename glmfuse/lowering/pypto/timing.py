"""Kernels in PyPTO's cost model, beside the kernels that they replace and beside their floors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from glmfuse.errors import KernelError
from glmfuse.lowering.pypto.apart import launches_apart
from glmfuse.lowering.pypto.chip import ASCEND_910B, CYCLES_PER_MICROSECOND, Chip
from glmfuse.lowering.pypto.family import arguments, geometry
from glmfuse.lowering.pypto.launch.launch import Launch, checked, request_of
from glmfuse.lowering.pypto.process import Mode, Simulation, run
from glmfuse.lowering.pypto.registry import KERNELS
from glmfuse.lowering.pypto.site import refusal

WHOLE_L1 = replace(ASCEND_910B, l1_share=1.0)
BLIND = (
    "simulated by PyPTO's cost model for 24 cube and 48 vector cores, not measured on a chip: it knows no launch "
    "cost, no memory bandwidth shared by cores, and charges vector arithmetic by default tables"
)
"""What belongs beside every figure."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at one shape, in microseconds.

    simulation: with tiles up to half of L1. whole_l1: its window with tiles up to the whole. bytes_floor: its
    inputs and outputs at the chip's memory bandwidth. stages_floor: the longest path of its tasks at the
    least time from one stage to the next; what remains is tasks waiting to be handed out. apart: the windows
    of the kernels that it replaces, by name.
    """

    pattern: str
    shape: str
    tokens: int
    simulation: Simulation
    whole_l1: float
    bytes_floor: float
    stages_floor: float
    apart: tuple[tuple[str, float], ...]

    @property
    def sum_apart(self) -> float:
        """The windows of the kernels that it replaces, one after another, without their launches."""
        return sum(window for _, window in self.apart)


class Simulator:
    """Simulates launches, each distinct one once."""

    def __init__(self) -> None:
        self._done: dict[Any, Simulation] = {}

    def time(self, pattern: str, shape: str, tokens: int, *, trace: bool = False) -> Timing:
        """Time a kernel in bf16; KernelError when it does not take the shape or does not compile."""
        values = arguments(pattern, geometry(shape), tokens, torch.bfloat16)
        if (reason := refusal(ASCEND_910B, KERNELS[pattern], pattern, values)) is not None:
            raise KernelError(pattern, "limits", reason)
        launch = KERNELS[pattern].launch(ASCEND_910B, **values)
        found = self.simulation(launch, trace=trace)
        return Timing(
            pattern,
            shape,
            tokens,
            found,
            self.simulation(KERNELS[pattern].launch(WHOLE_L1, **values)).window,
            bytes_floor(ASCEND_910B, launch),
            stages_floor(ASCEND_910B, found),
            tuple(self._apart(launches_apart(ASCEND_910B, pattern, values))),
        )

    def simulation(self, launch: Launch, *, trace: bool = False) -> Simulation:
        """The cost model's account of a launch."""
        key = (launch.kernel, tuple(tensor.shape for tensor in launch.inputs), trace)
        if key not in self._done:
            outcome = checked(run(request_of(launch, Mode.SIMULATE, trace=trace)), launch, Mode.SIMULATE)
            assert outcome.simulation is not None
            self._done[key] = outcome.simulation
        return self._done[key]

    def _apart(self, launches: Iterable[Launch]) -> Iterable[tuple[str, float]]:
        for launch in launches:
            name = launch.kernel.builder.rpartition(".")[2].partition(":")[0]
            yield name, self.simulation(launch).window


def bytes_floor(chip: Chip, launch: Launch) -> float:
    """Microseconds that inputs and outputs take at the chip's memory bandwidth."""
    moved = sum(tensor.numel() * tensor.element_size() for tensor in launch.inputs)
    moved += sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in launch.outputs)
    return moved / chip.bandwidth * 1e6


def stages_floor(chip: Chip, found: Simulation) -> float:
    """Microseconds that no schedule of these tasks can go below in the cost model."""
    return found.chain + (found.stages - 1) * chip.cycles_stage / CYCLES_PER_MICROSECOND
