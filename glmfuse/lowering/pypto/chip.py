"""The chip that kernels are cut for: sizes of its memories and how many cores it has, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
CYCLES_PER_MICROSECOND: Final = 1800.0
"""The clock by which pypto's own scripts read the cost model's cycles."""


@dataclass(frozen=True, slots=True)
class Chip:
    """An AI core's memories in bytes, and the cores of the SoC.

    ub: unified buffer of a vector core. l1, l0a, l0b, l0c: buffers of a cube core. cube_cores and
    vector_cores: AIC and AIV. l1_share: part of L1 that tiles may take; half leaves room for double
    buffering. tail: bytes that the last axis of a vector tile is a multiple of.
    bandwidth: bytes a second to and from device memory. cycles_*: PyPTO's cost model, in its cycles: a copy
    into L1, each byte of it, each byte into L0, the release of a task, and the least time from the end of a
    task to the start of one that waits for it. has_float8: whether its cube cores multiply float8, as those of
    Ascend950 do.
    """

    name: str
    ub: int
    l1: int
    l0a: int
    l0b: int
    l0c: int
    cube_cores: int
    vector_cores: int
    tail: int
    bandwidth: float
    cycles_copy: float
    cycles_byte: float
    cycles_byte_l0: float
    cycles_release: float
    cycles_stage: float
    l1_share: float = 0.5
    has_float8: bool = False


ASCEND_910B: Final = Chip(
    # Memories: the platform file A2A3.ini of pypto 0.2.0. Cores: its cost model's _simulate.config.ini.
    name="Ascend910B",
    ub=192 * KIB,
    l1=512 * KIB,
    l0a=64 * KIB,
    l0b=64 * KIB,
    l0c=128 * KIB,
    cube_cores=24,
    vector_cores=48,
    tail=32,
    bandwidth=1.6e12,  # HBM2e of the 64 GB Ascend 910B, as published; nothing here has measured it
    # Cycles: fitted to the timelines of the cost model of pypto 0.2.0.
    cycles_copy=1406.0,
    cycles_byte=0.010452,
    cycles_byte_l0=0.008236,
    cycles_release=390.0,
    cycles_stage=3470.0,
)
