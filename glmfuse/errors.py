"""The catalogue of errors: each class is one mistake, its message says what to do about it.

A pattern that does not match is not an error: it is a `glmfuse.matching.mismatch.Mismatch`, a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class GlmfuseError(Exception):
    """Base of every error that glmfuse raises on purpose."""


class OptionError(GlmfuseError):
    """An option has an unknown name or a value that it cannot take."""

    @classmethod
    def unknown(cls, kind: str, names: Iterable[str], valid: Iterable[str]) -> OptionError:
        """Name every stranger at once and list what would have been valid."""
        strangers = ", ".join(repr(name) for name in sorted(names))
        return cls(f"unknown {kind}: {strangers}. Valid: {', '.join(sorted(valid))}.")


class PatternError(GlmfuseError):
    """A pattern is defined wrongly; raised where it is registered, with the line of its definition."""

    def __init__(self, name: str, where: str, problem: str) -> None:
        super().__init__(f"pattern {name!r} is defined wrongly: {problem}\n  defined at {where}")
        self.name = name
        self.where = where


class UnavailableError(GlmfuseError):
    """An engine or a target that was asked for by name cannot be used here."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        super().__init__(f"{kind} {name!r} cannot be used: {reason}")


class ExpectationError(GlmfuseError):
    """`expect` demanded another number of matched sites than the graph has."""


class VerificationError(GlmfuseError):
    """With `verify=True`, a fused site gave another result than the subgraph that it replaced."""


class ConfigError(GlmfuseError):
    """A model configuration cannot be read or built."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What one layer of a quantised model is said to hold, and what it does."""

    layer: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.layer}: expected {self.expected}, found {self.found}"


class QuantizationError(GlmfuseError):
    """A model cannot be quantised, or its quantised weights cannot be taken, as was asked."""

    _SHOWN = 20

    def __init__(self, where: str, problems: Sequence[Problem]) -> None:
        shown = "".join(f"\n  {problem}" for problem in problems[: self._SHOWN])
        rest = len(problems) - self._SHOWN
        super().__init__(f"{where}:{shown}" + (f"\n  and {rest} more" if rest > 0 else ""))
        self.problems = tuple(problems)


class CheckpointError(QuantizationError):
    """The files of a checkpoint disagree with each other, or with the model; every problem is named."""


class KernelError(GlmfuseError):
    """A kernel did not compile or run, in the toolchain's own words."""

    def __init__(self, kernel: str, mode: str, reason: str, log: str = "") -> None:
        super().__init__(f"kernel {kernel} fails ({mode}): {reason}" + (f"\n{log}" if log else ""))
        self.reason = reason
