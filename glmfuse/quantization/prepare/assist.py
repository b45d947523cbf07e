"""What the product of int8 by int4 lacks: the cube multiplies two signed halves of each row.

A row is 16 * high + low with low of 0 ... 15, and the cube takes low - 8. So 8 times the sum of each output's weights
is missing, which version 1.0.0 of ModelSlim holds as `scale_bias` and the operators take as bias, or assist matrix.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from glmfuse.quantization.prepare.expect import divides, refusal, shaped
from glmfuse.quantization.prepare.two_levels import group_size
from glmfuse.quantization.schemes import SHARDS


def scale_bias(values: Tensor, scale: Tensor, parts: int, layer: str = "weight") -> Tensor:
    """8 * sum_k(W * s) of each of `parts` equal runs of inputs, as a checkpoint holds it.

    values [..., in, out] int8, scale [..., groups, out] fp32 -> [..., out, parts] fp32. Integers are summed as such
    where they share a scale, the rest in fp64, and the result is rounded once. Source: vllm-ascend,
    update_bias_compressed_tensors of w4a8.py, where each W * s is rounded too; the columns by its 5f8b1699ae.

    Raises:
        QuantizationError: the inputs are no whole number of groups, or of parts.
    """
    inputs = values.shape[-2]
    size = group_size(inputs, scale, layer)
    cell = gcd(size, divides(layer, parts, inputs, f"inputs in {parts} equal parts of scale_bias"))
    totals = values.unflatten(-2, (-1, cell)).sum(-2, dtype=torch.int64)
    terms = totals * scale.to(torch.float64).repeat_interleave(size // cell, -2)
    return (8 * terms.unflatten(-2, (parts, -1)).sum(-2)).to(torch.float32).mT.contiguous()


def assist_bias(values: Tensor, scale: Tensor, layer: str = "weight") -> Tensor:
    """8 * sum_k(W * s) over all inputs, for weights that come without scale_bias.

    values [..., in, out] int8, scale [..., groups, out] fp32 -> [..., out] fp32.

    Raises:
        QuantizationError: the inputs are no whole number of groups.
    """
    return scale_bias(values, scale, 1, layer).squeeze(-1)


def scale_bias_columns(row_parallel: bool, ranks: int, layer: str = "weight") -> int:
    """How many columns scale_bias has on each rank: 1, or 16 / ranks where the inputs are split.

    Source: vllm-ascend, get_dynamic_quant_param_modelslim of w4a8.py, and its limit of 16 ranks.

    Raises:
        QuantizationError: sixteen parts cannot be dealt out to so many ranks.
    """
    if not row_parallel:
        return 1
    if ranks > SHARDS:
        raise refusal(layer, f"at most {SHARDS} ranks (tp) for W4A8_DYNAMIC of version 1.0.0", f"tp {ranks}")
    return divides(layer, ranks, SHARDS, f"a number of ranks (tp) that divides {SHARDS}")


def assist_of(held: Tensor, outputs: int, layer: str = "weight") -> Tensor:
    """scale_bias as the operators take it: the sum over its columns.  [..., out, columns] -> [..., out] fp32.

    Raises:
        QuantizationError: it is not of so many outputs.
    """
    wanted = (*held.shape[:-2], outputs, held.shape[-1])
    return shaped(layer, "scale_bias", held, wanted).to(torch.float32).sum(-1)
