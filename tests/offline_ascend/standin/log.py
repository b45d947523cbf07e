"""What the fake device was asked to do, for tests that count: launches, captures, replays, and bytes allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Log:
    """One recording: operators by their overloads' names, in order, and counts.

    `launched` ran at once; `captured` went onto a tape and run at each replay; `updated` took the place of captured
    ones, with other arguments. `copied` has the bytes of each plain copy within the device that no kernel makes.
    `races` write elements that they read elsewhere, which torch_npu lets pass.
    `captures` leaves out those of nothing, by which npugraph_ex opens its memory pool. `allocated` is in bytes: every
    block that torch_npu's caching allocator handed out counts, whether or not it was given back.
    """

    launched: list[str] = field(default_factory=list)
    captured: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)
    races: list[str] = field(default_factory=list)
    captures: int = 0
    replays: int = 0
    allocated: int = 0


_open: list[Log] = []


def recordings() -> list[Log]:
    """The recordings that are under way."""
    return _open


@contextmanager
def record() -> Iterator[Log]:
    """Record what happens inside; recordings may be nested."""
    log = Log()
    _open.append(log)
    before = _handed_out()
    try:
        yield log
    finally:
        _open.pop()
        log.allocated = _handed_out() - before


def _handed_out() -> int:
    return torch.npu.memory_stats().get("allocated_bytes.all.allocated", 0)
