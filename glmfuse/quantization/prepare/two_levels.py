"""int4 in groups: a scale for each output and one for each of its groups of inputs, folded into one for each group."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse.quantization.prepare.expect import divides, shaped


def fold(scale: Tensor, second: Tensor | None, layer: str = "scale") -> Tensor:
    """scale * second as the products read it: [..., groups, out] fp32, the product rounded once.

    scale [..., out, 1], second [..., out, groups], or None for one group: then the scale alone. Source: vllm-ascend
    5f8b1699ae, process_scale_second of w4a8_dynamic.py; the symmetric offsets beside them are zero and not read.

    Raises:
        QuantizationError: the two do not fit.
    """
    lead = scale.shape[:-1]
    wide = shaped(layer, "weight_scale", scale, (*lead, 1)).to(torch.float32)
    if second is not None:
        shaped(layer, "weight_scale_second", second, (*lead, second.shape[-1]))
        wide = wide * second.to(torch.float32)
    return wide.mT.contiguous()


def group_size(inputs: int, scale: Tensor, layer: str = "scale") -> int:
    """How many inputs have a scale of their own, of folded scales [..., groups, out].

    Raises:
        QuantizationError: the inputs are no whole number of groups.
    """
    groups = scale.shape[-2]
    return divides(layer, groups, inputs, "inputs in whole groups")


def to_fp16(scale: Tensor) -> Tensor:
    """Scales of groups rounded to fp16 and back, fp32: so many bits the grouped product of int4 takes of them.

    Source: vllm-ascend a69ef10c3a, process_scale of methods/w4a8.py; scales of one group are not rounded there.
    """
    return scale.to(torch.float16).to(torch.float32)
