"""The catalogue of errors: each class is one mistake, its message says what to do about it.

A pattern that does not match is not an error: it is a `glmfuse.matching.mismatch.Mismatch`, a value.
"""

from __future__ import annotations

from collections.abc import Iterable


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


class WeightError(GlmfuseError):
    """A tensor of a quantised layer is not what its type, its sizes or the chip ask for."""

    def __init__(self, layer: str, expected: str, found: object) -> None:
        super().__init__(f"{layer}: expected {expected}, found {found}")


class KernelError(GlmfuseError):
    """A kernel did not compile or run, in the toolchain's own words."""

    def __init__(self, kernel: str, mode: str, reason: str, log: str = "") -> None:
        super().__init__(f"kernel {kernel} fails ({mode}): {reason}" + (f"\n{log}" if log else ""))
        self.reason = reason
