"""The quantization_config of compressed-tensors, read by an exact comparison of what it says.

Every field that decides the arithmetic is compared, with its default where it is absent. A prefix of them would take a
block scale or an asymmetric one for another scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from glmfuse.errors import CheckpointError, Problem
from glmfuse.quantization.checkpoint.described import Described
from glmfuse.quantization.schemes import (
    COMPRESSED_TENSORS,
    FP8_PER_TOKEN,
    W4A8_DYNAMIC,
    W8A8_DYNAMIC,
    Form,
    Kind,
)

_DEFAULTS: dict[str, Any] = {
    "num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "strategy": None, "block_structure": None,
    "dynamic": False, "actorder": None, "scale_dtype": None, "zp_dtype": None,
}  # fmt: skip
"""compressed-tensors 0.20, QuantizationArgs."""
_OBSERVING = ("observer", "observer_kwargs")
"""How scales were found, which the scales themselves say."""


def _args(bits: int, kind: str, strategy: str, *, dynamic: bool = False, group_size: int | None = None) -> Any:
    said = {"num_bits": bits, "type": kind, "strategy": strategy, "dynamic": dynamic, "group_size": group_size}
    return {**_DEFAULTS, **said}


_TOKENS = {"int": _args(8, "int", "token", dynamic=True), "float": _args(8, "float", "token", dynamic=True)}
_FORMATS = {"int": "int-quantized", "float": "float-quantized"}


def args_of(kind: Kind, group_size: int) -> dict[str, Any]:
    """The weights, activations and format of a group of this type, as the config holds them."""
    if kind is FP8_PER_TOKEN:
        return _group(_args(8, "float", "channel"))
    if kind is W8A8_DYNAMIC:
        return _group(_args(8, "int", "channel"))
    if kind is W4A8_DYNAMIC:
        grouped = _args(4, "int", "group", group_size=group_size)
        return _group(grouped if group_size else _args(4, "int", "channel"))
    raise CheckpointError("compressed-tensors", [Problem("config_groups", "a type that it can hold", kind.name)])


def describe(groups: Mapping[Kind, list[str]], ignore: list[str], group_size: int) -> dict[str, Any]:
    """A quantization_config. groups: the targets of each type. ignore: the layers that stay as they are."""
    said = {
        f"group_{n}": {"targets": names, **args_of(kind, group_size)} for n, (kind, names) in enumerate(groups.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(said.values()))["format"],
        "quantization_status": "compressed",
        "config_groups": said,
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def is_read(config: Mapping[str, Any]) -> bool:
    """Whether every group of a quantization_config is one of the types here, so that its layers can be read."""
    try:
        _groups(config)
    except CheckpointError:
        return False
    return True


def read(config: Mapping[str, Any], modules: Iterable[str]) -> Described:
    """The types of these modules by a quantization_config; CheckpointError names each group that is another scheme."""
    groups, ignore = _groups(config), config.get("ignore") or []
    kinds, forms = {}, {}
    for module in modules:
        if any(_targets(target, module) for target in ignore):
            continue
        found = _group_for(module, groups)
        if found is not None:
            kinds[module], forms[module] = found
    return Described(kinds, forms)


_Group = tuple[list[str], tuple[Kind, Form]]


def _groups(config: Mapping[str, Any]) -> list[_Group]:
    problems, groups = list(_refused(config)), []
    for name, group in (config.get("config_groups") or {}).items():
        kind, form, differ = min(_compared(_said(group, config)), key=lambda one: len(one[2]))
        problems += [Problem(f"{name}.{field}", f"{kind.name}'s {ours!r}", repr(its)) for field, ours, its in differ]
        groups.append((list(group.get("targets") or []), (kind, form)))
    if not groups and not problems:
        problems.append(Problem("config_groups", "at least one group", "none"))
    if problems:
        raise CheckpointError("quantization_config", problems)
    return groups


def _refused(config: Mapping[str, Any]) -> Iterator[Problem]:
    """What would change the arithmetic outside the groups."""
    for field in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        if config.get(field):
            yield Problem(field, "none", str(config[field])[:80])
    status = config.get("quantization_status", "compressed")
    if status != "compressed":
        yield Problem("quantization_status", "compressed", str(status))


_Difference = tuple[str, Any, Any]
"""A field, what a type has there, and what a group says."""


def _compared(said: dict[str, Any]) -> Iterator[tuple[Kind, Form, list[_Difference]]]:
    """Each type, and where a group differs from it."""
    size = (said["weights"] or {}).get("group_size") or 0
    for kind in (FP8_PER_TOKEN, W8A8_DYNAMIC, W4A8_DYNAMIC):
        differ = list(_differences(args_of(kind, size), said))
        yield kind, Form(COMPRESSED_TENSORS, "0", size), differ


def _differences(ours: dict[str, Any], said: dict[str, Any]) -> Iterator[_Difference]:
    for name in (*ours, *(name for name in said if name not in ours)):
        mine, its = ours.get(name), said.get(name)
        if isinstance(mine, dict) and isinstance(its, dict):
            yield from ((f"{name}.{field}", *values) for field, *values in _differences(mine, its))
        elif mine != its:
            yield name, mine, its


def _said(group: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A group with every default written out, so that equality compares all that decides."""
    names = ("weights", "input_activations", "output_activations")
    return {**{name: _full(group.get(name)) for name in names}, "format": group.get("format") or config.get("format")}


def _full(args: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if args is None:
        return None
    return {**_DEFAULTS, **{name: value for name, value in args.items() if name not in _OBSERVING}}


def _group(weights: dict[str, Any]) -> dict[str, Any]:
    kind = weights["type"]
    tokens = _TOKENS[kind]
    return {"weights": weights, "input_activations": tokens, "output_activations": None, "format": _FORMATS[kind]}


def _group_for(module: str, groups: list[_Group]) -> tuple[Kind, Form] | None:
    """A layer's own name comes before a pattern of names, and that before a class."""
    ranked = [(_rank(target, module), found) for targets, found in groups for target in targets]
    met = [(rank, found) for rank, found in ranked if rank is not None]
    return min(met, key=lambda pair: pair[0])[1] if met else None


def _rank(target: str, module: str) -> int | None:
    """How near a target names a layer, 0 the nearest; None where it does not."""
    if not _targets(target, module):
        return None
    return 2 if target == "Linear" else 1 if target.startswith("re:") else 0


def _targets(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module or (target == "Linear" and module.endswith(("_proj", "lm_head", "shared_head.head")))
