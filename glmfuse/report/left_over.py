"""What no fused site took, as data: the operator, its place, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What running operators moves and computes.

    bytes: read and written. held: of these, bytes of weights and caches, which are the graph's inputs. flops:
    floating-point operations.
    """

    bytes: int = 0
    held: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both."""
        return Cost(self.bytes + other.bytes, self.held + other.held, self.flops + other.flops)

    def times(self, count: int) -> Cost:
        """So many of it."""
        return Cost(self.bytes * count, self.held * count, self.flops * count)

    def share_of(self, whole: Cost) -> tuple[float, float, float]:
        """Its shares of the whole's bytes, bytes of weights and caches, and FLOPs."""
        return (
            self.bytes / max(whole.bytes, 1),
            self.held / max(whole.held, 1),
            self.flops / max(whole.flops, 1),
        )


NOTHING = Cost()


@dataclass(frozen=True, slots=True)
class LeftOver:
    """An operator that is handed to the engine as it was captured; module is the path of the model's module."""

    node: str
    op: str
    source: str
    module: str
    cost: Cost


def total(entries: Iterable[LeftOver]) -> Cost:
    """The cost of them all."""
    return sum((entry.cost for entry in entries), NOTHING)
