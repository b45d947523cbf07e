"""How tensors of single experts become those of all, by transformers' converters of weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from glmfuse.quantization.modules.experts import merged_name

_BESIDE_WEIGHT = ("weight_scale", "weight_offset", "weight_scale_second", "weight_offset_second", "scale_bias")


def with_scales(conversions: Iterable[Any]) -> list[Any]:
    """A model's converters, and for those that merge experts' weights one for each tensor beside a weight.

    They merge alike: experts are stacked, gate's rows come before up's. One for a tensor that no layer has is idle.
    """
    given = list(conversions)
    merging = [one for one in given if _merges_experts(one)]
    return [*given, *(_for(one, tensor) for one in merging for tensor in _BESIDE_WEIGHT)]


def _merges_experts(conversion: Any) -> bool:
    sources = conversion.source_patterns
    return hasattr(conversion, "operations") and all(
        ".experts.*." in source and source.endswith("_proj.weight") for source in sources
    )


def _for(conversion: Any, tensor: str) -> Any:
    sources = [source.removesuffix("weight") + tensor for source in conversion.source_patterns]
    targets = [merged_name(target, tensor) for target in conversion.target_patterns]
    return conversion.copy(sources, targets, operations=list(conversion.operations))
