"""What a kernel saves that only moves fewer bytes."""

from __future__ import annotations

import math
from typing import Final

from glmfuse.matching.layout import Layout
from glmfuse.matching.select import Gain

_BYTES_PER_US: Final = 10_000
"""About what one core copies (10 GB/s): gains of one graph are compared with each other, never with a clock."""

_UNKNOWN: Final = 1
"""A size that varies counts as the least there is."""


def size(at: Layout) -> int:
    """Bytes of a tensor."""
    return math.prod(step if isinstance(step, int) else _UNKNOWN for step in at.shape) * at.dtype.itemsize


def of_bytes(fused: float, separate: float) -> Gain:
    """The gain of moving so many bytes instead of so many."""
    return Gain(fused / _BYTES_PER_US, separate / _BYTES_PER_US, "bytes moved, at 10 GB/s")
