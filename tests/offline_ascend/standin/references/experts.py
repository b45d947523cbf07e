"""Products in which each group of rows has a matrix of its own.  x [rows, k], weight [experts, k, n]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin.references import fp8
from tests.offline_ascend.standin.references.quant import plain_scale
from tests.offline_ascend.standin.references.reference import Reference, absent, only
from tests.offline_ascend.standin.references.rounding import dtype_of, int8, product, unpack
from tests.offline_ascend.standin.references.swiglu import gated

Tensors = Sequence[Tensor]


def grouped(group_list: Tensor | Sequence[int], kind: int = 0) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and which. kind 0 lists where groups end, 1 how many rows, 2 expert and number."""
    listed = torch.as_tensor(group_list)
    if kind == 2:
        pairs = [(int(e), int(n)) for e, n in listed.tolist()]
    else:
        counts = listed.diff(prepend=listed.new_zeros(1)) if kind == 0 else listed
        pairs = list(enumerate(counts.tolist()))
    at = 0
    for expert, count in pairs:
        if count:
            yield expert, slice(at, at + count)
        at += count


def stacked(values: Tensors | None) -> Tensor | None:
    """One tensor of all experts, or one for each, as one."""
    if not values:
        return None
    return values[0] if len(values) == 1 else torch.stack(list(values))


def grouped_matmul(
    x: Tensors,
    weight: Tensors,
    *,
    bias: Tensors | None = None,
    scale: Tensors | None = None,
    offset: Tensors | None = None,
    antiquant_scale: Tensors | None = None,
    antiquant_offset: Tensors | None = None,
    per_token_scale: Tensors | None = None,
    group_list: Tensor | None = None,
    activation_input: Tensors | None = None,
    activation_quant_scale: Tensors | None = None,
    activation_quant_offset: Tensors | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    act_type: int = 0,
    tuning_config: list[int] | None = None,
    output_dtype: int | None = None,
    **dtypes: Any,
) -> list[Tensor]:
    """[rows, n], with rows behind the last group not written by the kernel (zeros here).

    Floating: one rounding, the weight possibly int8 or int4 with a scale and an offset of its own. int8: the exact
    product * scale [e, n] * per_token_scale [row] + bias. int8 by int4: `_eight_by_four`.
    """
    only("npu_grouped_matmul", group_type=(group_type, 0), act_type=(act_type, 0), number_of_x=(len(x), 1))
    absent("npu_grouped_matmul", offset=offset or None, activation_input=activation_input or None, **dtypes)
    assert group_list is not None, "groups of rows need a group_list"
    (rows,), matrices = x, stacked(weight)
    assert matrices is not None
    if matrices.dtype == torch.int32:
        matrices = unpack(matrices)
    packed = weight[0].dtype == torch.int32
    to = dtype_of(output_dtype, torch.int8 if rows.dtype == torch.int8 else rows.dtype)
    given = _Given(*map(stacked, (bias, scale, antiquant_scale, antiquant_offset, per_token_scale)))
    is_quantised = rows.dtype in (torch.int8, fp8.FP8)
    one = _floating if not is_quantised else _eight_by_four if packed else _eight_by_eight
    out = torch.zeros(rows.shape[0], matrices.shape[-1], dtype=to)
    for expert, some in grouped(group_list, group_list_type):
        out[some] = one(rows[some], matrices[expert], given.of(expert, some), to)
    return [out]


class _Given:
    """What may come with the matrices, all of it or one expert's part."""

    def __init__(self, bias: Any, scale: Any, weight_scale: Any, weight_offset: Any, row_scale: Any) -> None:
        self.bias, self.scale, self.row_scale = bias, scale, row_scale
        self.weight_scale, self.weight_offset = weight_scale, weight_offset

    def of(self, expert: int, rows: slice) -> _Given:
        each = (self.bias, self.scale, self.weight_scale, self.weight_offset)
        mine = [None if values is None else values[expert] for values in each]
        return _Given(*mine, None if self.row_scale is None else self.row_scale.reshape(-1, 1)[rows].float())


def _floating(x: Tensor, weight: Tensor, given: _Given, to: torch.dtype) -> Tensor:
    values = weight.float()
    if given.weight_scale is not None:
        offset = 0 if given.weight_offset is None else given.weight_offset.float()
        values = ((values + offset) * given.weight_scale.float()).to(x.dtype).float()
    y = x.float() @ values
    return (y if given.bias is None else y + given.bias.float()).to(to)


def _eight_by_eight(x: Tensor, weight: Tensor, given: _Given, to: torch.dtype) -> Tensor:
    total = fp8.product(x, weight) if x.dtype == fp8.FP8 else product(x, weight)
    whole = given.bias is not None and given.bias.dtype == torch.int32
    if whole:
        total = total + given.bias.double()
    if to == torch.int32:
        return total.to(torch.int32)
    y = total.float() * plain_scale(given.scale).reshape(-1)
    if given.row_scale is not None:
        y = y * given.row_scale
    if given.bias is not None and not whole:
        y = y + given.bias.float()
    return int8(y) if to == torch.int8 else y.to(to)


def _eight_by_four(x: Tensor, weight: Tensor, given: _Given, to: torch.dtype) -> Tensor:
    """int8 as 16 * high + (low - 8): each half's product leaves the cube as fp16, bias carries 8 * sum(W * s).

    Off the exact product by 0.02 percent before it is rounded to the output's dtype. With scales [groups, n] each group
    of inputs has a product of its own; that these are added in fp32, each rounded to fp16, is assumed.
    """
    scale = plain_scale(given.scale)
    scale = scale.reshape(-1, scale.shape[-1])
    upper, lower = (_by_group_of_inputs(half, weight, scale) for half in _halves(x))
    return ((upper * 16 + lower + given.bias.float()) * given.row_scale).to(to)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    whole = x.to(torch.int32)
    return torch.div(whole, 16, rounding_mode="floor"), (whole & 15) - 8


def _by_group_of_inputs(half: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    groups = scale.shape[0]
    inputs = half.unflatten(-1, (groups, -1)).transpose(0, 1)
    totals = product(inputs, weight.unflatten(0, (groups, -1)))
    return (totals.float() * scale.unsqueeze(1)).half().float().sum(0)


def grouped_matmul_swiglu_quant(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    *,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """int8 [rows, n / 2], fp32 scales [rows], and a third that is not written (zero here).

    group_list has the groups' ends. The exact product * x_scale [row] * weight_scale [e, n]; scale = max / 127,
    q = RN(y * (1 / scale)).
    """
    absent("npu_grouped_matmul_swiglu_quant", bias=bias, offset=offset)
    quantised = torch.zeros(x.shape[0], weight.shape[-1] // 2, dtype=torch.int8)
    scale = torch.zeros(x.shape[0])
    for expert, rows in grouped(group_list):
        total = product(x[rows], weight[expert]).float()
        wide = total * x_scale[rows].float().unsqueeze(-1) * weight_scale[expert].float()
        quantised[rows], scale[rows] = _gated_rows(wide)
    return quantised, scale, torch.zeros([])


def _gated_rows(wide: Tensor) -> tuple[Tensor, Tensor]:
    y = gated(*wide.chunk(2, -1))
    scale = y.abs().amax(-1) / 127.0
    return int8(y * (1 / scale).unsqueeze(-1)), scale


def grouped_matmul_swiglu_quant_v2(
    x: Tensor,
    weight: Tensors,
    weight_scale: Tensors,
    x_scale: Tensor,
    group_list: Tensor,
    *,
    smooth_scale: Tensor | None = None,
    weight_assist_matrix: Tensors | None = None,
    bias: Tensor | None = None,
    dequant_mode: int = 0,
    dequant_dtype: int = 6,
    quant_mode: int = 0,
    quant_dtype: int = 1,
    group_list_type: int = 0,
    tuning_config: list[int] | None = None,
    **dtypes: Any,
) -> tuple[Tensor, Tensor]:
    """As the first version; group_list may count rows, and weights may be int4 with their assist matrix."""
    name = "npu_grouped_matmul_swiglu_quant_v2"
    absent(name, smooth_scale=smooth_scale, bias=bias, **dtypes)
    only(name, dequant_mode=(dequant_mode, 0), quant_mode=(quant_mode, 0))
    ends = group_list if group_list_type == 0 else group_list.cumsum(0)
    matrices, scales = stacked(weight), stacked(weight_scale)
    assert matrices is not None
    assert scales is not None
    if matrices.dtype != torch.int32:
        return grouped_matmul_swiglu_quant(x, matrices, ends, scales, x_scale)[:2]
    (wide,) = grouped_matmul(
        [x], [matrices], bias=weight_assist_matrix, scale=[scales], per_token_scale=[x_scale], group_list=ends,
        group_type=0, output_dtype=6,
    )  # fmt: skip
    return _gated_rows(wide)


OPS = {
    "npu_grouped_matmul": Reference(grouped_matmul),
    "npu_grouped_matmul_swiglu_quant": Reference(grouped_matmul_swiglu_quant),
    "npu_grouped_matmul_swiglu_quant_v2": Reference(grouped_matmul_swiglu_quant_v2),
}
