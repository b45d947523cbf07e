"""The dialects, and their spellings given to the patterns once their libraries are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from glmfuse.dialects.npu import NPU
from glmfuse.dialects.npu_fp8 import NPU_FP8
from glmfuse.dialects.npu_norm_quant import NPU_NORM_QUANT
from glmfuse.dialects.npu_quant import NPU_QUANT
from glmfuse.dialects.npu_quant_experts import NPU_QUANT_EXPERTS
from glmfuse.dialects.npu_quant_mlp import NPU_QUANT_MLP
from glmfuse.dialects.npu_split_w4 import NPU_SPLIT_W4
from glmfuse.dialects.npu_weight_only import NPU_WEIGHT_ONLY
from glmfuse.dialects.spelled import Spelled
from glmfuse.dialects.vllm_ascend import VLLM_ASCEND
from glmfuse.errors import PatternError
from glmfuse.matching.register import spelling_of

_NPU_ALL = (
    *NPU,
    *NPU_QUANT,
    *NPU_NORM_QUANT,
    *NPU_FP8,
    *NPU_QUANT_EXPERTS,
    *NPU_QUANT_MLP,
    *NPU_WEIGHT_ONLY,
    *NPU_SPLIT_W4,
)

DIALECTS: Mapping[str, tuple[Spelled, ...]] = MappingProxyType({"npu": _NPU_ALL, "vllm_ascend": VLLM_ASCEND})

_REFUSED: dict[Spelled, str] = {}


def load(note: Callable[[str], None]) -> None:
    """Register what has become there since the last call; `note` hears of spellings that this build does not trace."""
    for name, dialect in DIALECTS.items():
        for spelled in dialect:
            _load(spelled)
            if spelled in _REFUSED:
                note(f"dialect {name!r} reads no {', '.join(spelled.ops)}: {_REFUSED[spelled]}")


def _load(spelled: Spelled) -> None:
    is_known = spelled.function.__name__ in spelled.pattern.spellings
    if is_known or spelled in _REFUSED or not spelled.is_there:
        return
    try:
        spelling_of(spelled.pattern)(spelled.function)
    except PatternError as error:
        _REFUSED[spelled] = str(error).splitlines()[0]
