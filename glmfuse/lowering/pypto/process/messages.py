"""What goes to the worker process and what comes back; no pypto here, both sides load it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PASSES = 36
"""How many passes pypto 0.2.0 interprets; a verification with fewer verdicts is none."""

PASSED = "PASS"


class Mode(enum.Enum):
    """How far a kernel is taken.

    INTERPRET: the tensor graph alone, for numerics; it does not see UB or L1 overflow. COMPILE: all
    passes, then the numerics. VERIFY: the graph interpreted after every pass, for the verdicts alone.
    SIMULATE: the cost model, no numerics.
    """

    INTERPRET = "interpret"
    COMPILE = "compile"
    VERIFY = "verify"
    SIMULATE = "simulate"


@dataclass(frozen=True, slots=True)
class KernelRef:
    """A kernel by the name of its builder, `module:function` or `/a/file.py:function`, and its arguments.

    The builder returns a `pypto.frontend.jit` function; pypto reads its source, so it lies in a file.
    """

    builder: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, builder: str, **arguments: Any) -> KernelRef:
        """A reference with its arguments in a fixed order."""
        return cls(builder, tuple(sorted(arguments.items())))


@dataclass(frozen=True, slots=True)
class Request:
    """One run: the kernel's inputs in order, then an output of each (shape, dtype).

    nz: places of inputs that are matrices in NZ, their numbers already in that order.
    """

    kernel: KernelRef
    mode: Mode
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    trace: bool = False
    nz: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Simulation:
    """The cost model's account of one launch, in microseconds.

    window: from the first task's start to the last one's end on the AI cores. start: device start before
    it. chain: the time of the tasks on the longest path of tasks that wait for each other; stages: how many
    tasks that path has. tasks, cores, busy: number of tasks, cores used and core-microseconds, by "AIC" and
    "AIV".
    timeline: (core, start, end, subgraph) of each task, when a trace was asked for.
    """

    window: float
    start: float
    chain: float
    stages: int
    tasks: Mapping[str, int]
    cores: Mapping[str, int]
    busy: Mapping[str, float]
    timeline: tuple[tuple[str, float, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave. error: why it failed, with pypto's own words, or None.

    passes: in VERIFY, the verdict of each pass that was interpreted: "PASS", or what went wrong.
    """

    tensors: tuple[torch.Tensor, ...] = ()
    simulation: Simulation | None = None
    passes: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    log: str = ""
