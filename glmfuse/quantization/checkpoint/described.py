"""What a checkpoint says of its layers, whichever format says it, and whether its tensors are that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from glmfuse.errors import Problem
from glmfuse.quantization.checkpoint.headers import Stored
from glmfuse.quantization.schemes import FLOATS, Form, Kind, Linear, is_row_parallel, problems_of

_OF_QUANTISED = ("_scale", "_offset", "_scale_second", "_offset_second", "quant_bias", "scale_bias")


@dataclass(frozen=True, slots=True)
class Described:
    """forms: how each quantised layer's tensors lie, by its name. kinds: of which type it is; others are FLOAT."""

    kinds: Mapping[str, Kind]
    forms: Mapping[str, Form]


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of each module, by the names that they have below it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        module, _, tensor = name.rpartition(".")
        found[module].append(tensor)
    return dict(found)


def linear_of(module: str, form: Form, kind: Kind, tensors: Mapping[str, Stored]) -> Linear:
    """The sizes of a layer, read from its weight."""
    rows, inputs = tensors["weight"].shape
    packed = form.is_packed and kind.name == "W4A8_DYNAMIC"
    return Linear(2 * rows if packed else rows, inputs, is_row_parallel(module), "bias" in tensors)


def disagreements(described: Described, tensors: Mapping[str, Mapping[str, Stored]]) -> Iterator[Problem]:
    """Where the tensors of layers are not those of their types."""
    for module, held in tensors.items():
        if module not in described.kinds:
            yield from _of_float(module, held)
    for module, kind in described.kinds.items():
        yield from _of_layer(module, kind, described.forms[module], tensors.get(module, {}))


def _of_float(module: str, tensors: Mapping[str, Stored]) -> Iterator[Problem]:
    """A layer that is said to be as it was, and holds scales or codes."""
    scales = [name for name in tensors if name.endswith(_OF_QUANTISED)]
    weight = tensors.get("weight")
    if scales or (weight is not None and weight.dtype not in FLOATS):
        yield Problem(module, "FLOAT: a floating-point weight without scales", ", ".join([str(weight), *scales]))


def _of_layer(module: str, kind: Kind, form: Form, tensors: Mapping[str, Stored]) -> Iterator[Problem]:
    if "weight" not in tensors or len(tensors["weight"].shape) != 2:
        yield Problem(module, f"a weight of {kind.name} with two dimensions", str(tensors.get("weight", "none")))
        return
    linear = linear_of(module, form, kind, tensors)
    impossible = problems_of(module, kind, linear, form)
    yield from impossible
    if not impossible:
        yield from compared(module, kind, linear, form, tensors)


def compared(module: str, kind: Kind, linear: Linear, form: Form, tensors: Mapping[str, Stored]) -> Iterator[Problem]:
    """Which tensors of a layer are missing, too many, or of another shape or dtype than those of its type."""
    holds = kind.holds(linear, form)
    missing = [name for name, held in holds.items() if name not in tensors and not held.optional]
    extra = [name for name in tensors if name not in holds]
    if missing or extra:
        absent = f"it lacks {', '.join(missing)}" if missing else ""
        strange = f"{'it' if not missing else 'and'} has {', '.join(extra)} besides" if extra else ""
        required = ", ".join(name for name, held in holds.items() if not held.optional)
        yield Problem(module, f"{kind.name}: {required}", " ".join(part for part in (absent, strange) if part))
    for name, held in holds.items():
        if name in tensors and not held.takes(tensors[name].shape, tensors[name].dtype):
            yield Problem(f"{module}.{name}", str(held), str(tensors[name]))
