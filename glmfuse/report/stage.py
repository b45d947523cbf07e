"""How far a pattern came at an anchor."""

from __future__ import annotations

import enum


class Stage(enum.IntEnum):
    """The stages in their order; the report keeps the furthest that was reached."""

    STRUCTURE = 0
    CHECK = 1
    CONSTRAINT = 2
    KERNEL = 3
    ESCAPE = 4
    OVERLAP = 5
    CYCLE = 6
    CHOSEN = 7
