"""A prepared layer on its device: FP8 where the chip has it, weights in NZ.

Casts to NZ happen here, once, outside of any graph. Of int4 the bytes are cast and read as words then, as
vllm-ascend does: NZ counts bytes.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from glmfuse.ascend.installed import soc_name
from glmfuse.lowering.pypto.launch.formats import FRACTAL_NZ
from glmfuse.quantization.prepare.expect import refusal
from glmfuse.quantization.prepare.layers import Fp8, Int4, Layer

T = TypeVar("T", bound=Layer)

WITH_FP8: Final = "Ascend950"


def place(layer: T, device: torch.device, name: str = "layer", nz: bool = True) -> T:
    """The layer with its tensors on the device, its weight in NZ.

    NZ takes `torch.npu.config.allow_internal_format`; without it torch_npu keeps ND, which only products that read
    ND take. FP8 stays in ND.

    Raises:
        QuantizationError: an FP8 layer is placed on a chip without FP8.
    """
    if isinstance(layer, Fp8):
        _check_fp8(name, soc_name())
    there = {field: value.to(device) for field, value in layer._asdict().items() if value is not None}
    if nz and not isinstance(layer, Fp8):
        there["weight"] = _in_nz(there["weight"], isinstance(layer, Int4))
    bare: Any = layer
    return bare._replace(**there)


def _in_nz(weight: Tensor, words: bool) -> Tensor:
    plain = weight.view(torch.int8) if words else weight
    cast: Tensor = torch.ops.npu.npu_format_cast(plain, FRACTAL_NZ)
    return cast.view(torch.int32) if words else cast


def _check_fp8(name: str, soc: str | None) -> None:
    if soc is None or not soc.startswith(WITH_FP8):
        raise refusal(name, f"a SoC with FP8 ({WITH_FP8})", soc or "no NPU")
