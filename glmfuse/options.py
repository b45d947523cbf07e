"""What a user can ask for, as one frozen value; an unknown name never passes silently."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from glmfuse.errors import OptionError

REPORT_VARIABLE = "GLMFUSE_REPORT"
CONSOLE = "-"
LAUNCH_US = 2.0
"""The least device start that PyPTO's cost model gives a kernel; what the host adds is not in it."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the backend, as given to `torch.compile(model, backend="glmfuse", options={...})`.

    engine: who compiles the graph after fusion; None takes the first that is usable here.
    targets: whose kernels fused sites get, in order of preference, by name or as Target objects of your
        own; None takes every usable target.
    patterns: patterns of your own to look for besides the built-in ones.
    only, disable: pattern names to keep or to leave out. A block keeps the patterns that it calls.
    expect: pattern name to the number of matched sites that every captured graph must have.
    verify: run the original subgraph beside each fused site on every call and compare.
    report: a folder that gets each graph's report, "-" for text on the console, or a Report to fill.
    frozen: the weights are not written through `.data`; then what depends on weights alone, such as the
        router's weight in fp32, is made once for each weight and not in every call. Other changes are
        noticed; after one through `.data`, call `glmfuse.refresh(model)`.
    launch_us: microseconds that a kernel launch is held to cost beside its time on the cores, when sites
        are chosen: a site that does not gain is not fused.
    fuel: fuse only the first n sites of each graph, to bisect a wrong result.
    engine_options: passed on to the engine.
    """

    engine: str | None = None
    targets: tuple[Any, ...] | None = None
    patterns: tuple[Any, ...] = ()
    only: frozenset[str] | None = None
    disable: frozenset[str] = frozenset()
    expect: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    verify: bool = False
    report: Any = None
    frozen: bool = False
    launch_us: float = LAUNCH_US
    fuel: int | None = None
    engine_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Read every value as if it came from a user's mapping."""
        for name, read in _READERS.items():
            object.__setattr__(self, name, read(name, getattr(self, name)))
        if self.report is None:
            object.__setattr__(self, "report", os.environ.get(REPORT_VARIABLE) or None)

    @classmethod
    def parse(cls, given: Mapping[str, Any] | Options | None) -> Options:
        """Read what a user wrote; raise OptionError for an unknown name or an impossible value."""
        if isinstance(given, Options):
            return given
        raw = dict(given or {})
        valid = [item.name for item in fields(cls)]
        if strangers := set(raw) - set(valid):
            raise OptionError.unknown("option", strangers, valid)
        return cls(**raw)

    def check_patterns(self, valid: Iterable[str]) -> None:
        """Raise OptionError when `only`, `disable` or `expect` names a pattern that does not exist."""
        names = set(valid)
        for option in ("only", "disable", "expect"):
            if strangers := set(getattr(self, option) or ()) - names:
                raise OptionError.unknown(f"pattern in option {option!r}", strangers, names)


def _report(name: str, value: Any) -> Any:
    return value if hasattr(value, "new_graph") else _text(name, value)


def _targets(name: str, value: Any) -> tuple[Any, ...] | None:
    items = (value,) if isinstance(value, str) else value
    return None if items is None else _objects(name, items, "kernels")


def _patterns(name: str, value: Any) -> tuple[Any, ...]:
    return _objects(name, value, "parameters")


def _objects(name: str, value: Any, attribute: str) -> tuple[Any, ...]:
    """A sequence of names or of objects that have this attribute; names are looked up later."""
    items = tuple(value) if isinstance(value, Iterable) else (None,)
    takes_names = attribute == "kernels"
    if not all(hasattr(item, attribute) or (takes_names and isinstance(item, str)) for item in items):
        raise OptionError(f"option {name!r} takes a sequence of {name}, not {value!r}.")
    return items


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise OptionError(f"option {name!r} takes a string, not {value!r}.")


def _names(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(item, str) for item in items):
        raise OptionError(f"option {name!r} takes names, such as ('rms_norm',), not {value!r}.")
    return items


def _name_set(name: str, value: Any) -> frozenset[str] | None:
    items = _names(name, value)
    return None if items is None else frozenset(items)


def _disabled(name: str, value: Any) -> frozenset[str]:
    return _name_set(name, value) or frozenset()


def _counts(name: str, value: Any) -> Mapping[str, int]:
    counts: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"": None}
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts.values()):
        raise OptionError(f"option {name!r} takes counts, such as {{'gate_topk': 89}}, not {value!r}.")
    return MappingProxyType(counts)


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise OptionError(f"option {name!r} takes True or False, not {value!r}.")


def _count(name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise OptionError(f"option {name!r} takes a number of sites, 0 or more, not {value!r}.")


def _duration(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise OptionError(f"option {name!r} takes microseconds, 0 or more, not {value!r}.")
    return float(value)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return MappingProxyType(dict(value))
    raise OptionError(f"option {name!r} takes a mapping, not {value!r}.")


_READERS = {
    "engine": _text,
    "targets": _targets,
    "patterns": _patterns,
    "only": _name_set,
    "disable": _disabled,
    "expect": _counts,
    "verify": _flag,
    "report": _report,
    "frozen": _flag,
    "launch_us": _duration,
    "fuel": _count,
    "engine_options": _mapping,
}
