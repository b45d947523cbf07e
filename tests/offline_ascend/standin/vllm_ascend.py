"""vllm-ascend's own operators, which exist only inside its builds: their schemas, fakes, and references.

So that layers can be written exactly as vllm-ascend spells them on Atlas A2 and A3. Schemas are those of vllm-ascend
0.23 (`csrc/torch_binding.cpp` and `vllm_ascend/ops/register_custom_ops.py`). A fake gives what torch_npu's Meta kernel
of the like operator gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.offline_ascend.standin.device import register
from tests.offline_ascend.standin.references import experts, norm, quant, rotary, routing, swiglu
from tests.offline_ascend.standin.references.reference import Reference, only
from tests.offline_ascend.standin.references.rounding import by_rows, int8

npu = torch.ops.npu
QINT8 = 12


@dataclass(frozen=True)
class Operator:
    """One operator: namespace, schema, and what it computes and gives."""

    namespace: str
    schema: str
    compute: Callable[..., Any]
    fake: Callable[..., Any]

    @property
    def name(self) -> str:
        """namespace::name."""
        return f"{self.namespace}::{self.schema.partition('(')[0]}"


def gating(
    x: Tensor, k: int, k_group: int, group_count: int, group_select_mode: int, renorm: int, norm_type: int,
    out_flag: bool, routed_scaling_factor: float, eps: float, bias_opt: Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of `npu_moe_gating_top_k`, of which this is the same function."""
    return {
        "x": x, "k": k, "k_group": k_group, "group_count": group_count, "group_select_mode": group_select_mode,
        "renorm": renorm, "norm_type": norm_type, "out_flag": out_flag, "eps": eps, "bias": bias_opt,
        "routed_scaling_factor": routed_scaling_factor,
    }  # fmt: skip


def rms_norm_dynamic_quant(
    x: Tensor, gamma: Tensor, smooth_scale: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """As `npu_add_rms_norm_dynamic_quant` without the addition: nothing rounded between."""
    y = x.float() * norm.reciprocal_deviation(x, gamma, epsilon) * gamma.float()
    y = y if beta is None else y + beta.float()
    values, scale = by_rows(y if smooth_scale is None else y * smooth_scale.float())
    return int8(values), scale


def _quantised_rows(x: Tensor, gamma: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return npu.npu_dynamic_quant(x)


def dequant_swiglu_quant(
    x: Tensor, *, activate_left: bool = True, swiglu_mode: int = 0, clamp_limit: float = 0.0, glu_alpha: float = 1.0,
    glu_bias: float = 0.0, **others: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`npu_dequant_swiglu_quant` with other defaults, which the dispatcher does not pass on.

    Its mode 1 takes halves, where torch_npu's takes neighbours, and clamps only by a limit above 0; with none, and
    nothing scaled or added, it is mode 0. Read from csrc/moe/dequant_swiglu_quant of vllm-ascend 182b75e.
    """
    name = "npu_dequant_swiglu_quant"
    if swiglu_mode:
        only(name, clamp_limit=(clamp_limit, 0.0), glu_alpha=(glu_alpha, 1.0), glu_bias=(glu_bias, 0.0))
    return swiglu.dequant_swiglu_quant(x, activate_left=activate_left, **others)


def _limited(swiglu_limit: float) -> None:
    only("grouped_matmul_swiglu_quant", swiglu_limit=(swiglu_limit, 0.0))


def grouped_swiglu(
    x: Tensor, weight: Any, weight_scale: Any, x_scale: Tensor, group_list: Tensor, *,
    bias: Tensor | None = None, offset: Tensor | None = None, swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`npu_grouped_matmul_swiglu_quant` with its arguments in another order; weights and scales may be lists."""
    _limited(swiglu_limit)
    whole, scale = (x if isinstance(x, Tensor) else torch.stack(list(x)) for x in (weight, weight_scale))
    return experts.grouped_matmul_swiglu_quant(x, whole, group_list, scale, x_scale, bias=bias, offset=offset)


def _grouped_swiglu_fake(x: Tensor, weight: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    width = (weight if isinstance(weight, Tensor) else weight[0]).shape[-1]
    out = x.new_empty(x.shape[0], width // 2)
    return out, x.new_empty(x.shape[0], dtype=torch.float32), x.new_empty([], dtype=torch.float32)


def grouped_swiglu_v2(
    x: Tensor, weight: list[Tensor], weight_scale: list[Tensor], x_scale: Tensor, group_list: Tensor,
    smooth_scale: Tensor | None = None, weight_assist_matrix: list[Tensor] | None = None, bias: Tensor | None = None,
    dequant_mode: int = 0, dequant_dtype: int = 0, quant_mode: int = 0, quant_dtype: int = 0,
    transpose_weight: bool = False, group_list_type: int = 0, tuning_config: Any = (), swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`npu_grouped_matmul_swiglu_quant_v2`, with the weights perhaps [experts, n, k]."""
    _limited(swiglu_limit)
    matrices = [w.transpose(-1, -2) for w in weight] if transpose_weight else weight
    return experts.grouped_matmul_swiglu_quant_v2(
        x, matrices, weight_scale, x_scale, group_list, smooth_scale=smooth_scale, bias=bias,
        weight_assist_matrix=weight_assist_matrix, dequant_mode=dequant_mode, quant_mode=quant_mode,
        group_list_type=group_list_type,
    )  # fmt: skip


def _grouped_swiglu_v2_fake(x: Tensor, weight: list[Tensor], scale: list[Tensor], *_: Any, **__: Any) -> Any:
    return x.new_empty(x.shape[0], scale[0].shape[-1] // 2), x.new_empty(x.shape[0], dtype=torch.float32)


def quantize(x: Tensor, input_scale: Tensor, input_scale_reciprocal: Tensor, input_offset: Tensor) -> Tensor:
    """`npu_quantize` by the reciprocal, which is kept so that nothing divides."""
    return quant.quantize(x, input_scale_reciprocal, input_offset, QINT8, -1, False)


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, cos_sin_cache: Tensor, head_dim: int, rotary_dim: int,
    is_neox_style: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`npu_mrope` in its plain mode: one rounding, the dims beyond rotary_dim stay."""
    only("npu_rotary_embedding", rotary_dim=(rotary_dim, cos_sin_cache.shape[-1]))
    mode = "half" if is_neox_style else "interleave"
    return rotary.mrope(positions, query, key, cos_sin_cache, head_dim, rotary_mode=mode)


def _two_alike(positions: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """vllm-ascend's fake returns query and key themselves; fresh ones say the same of their form."""
    return torch.empty_like(query), torch.empty_like(key)


def muls_add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """x * scale + y; the Triton kernel computes in x's dtype, so the product is rounded too."""
    return x * scale + y


SWIGLU = (
    "Tensor x_scale, Tensor group_list, *, Tensor? bias=None, Tensor? offset=None,"
    " float swiglu_limit=0.0) -> (Tensor output, Tensor output_scale, Tensor output_offset)"
)

OPERATORS = (
    Operator(
        "_C_ascend",
        "npu_add_rms_norm_bias(Tensor x1, Tensor x2, Tensor gamma, Tensor? beta=None, float epsilon=1e-6)"
        " -> (Tensor y, Tensor rstd, Tensor x)",
        norm.add_rms_norm_bias,
        lambda x1, x2, gamma, beta=None, epsilon=1e-6: npu.npu_add_rms_norm(x1, x2, gamma, epsilon),
    ),
    Operator(
        "_C_ascend",
        "npu_rms_norm_dynamic_quant(Tensor x, Tensor gamma, Tensor? smooth_scale=None, Tensor? beta=None,"
        " float epsilon=1e-6) -> (Tensor y_out, Tensor scale_out)",
        rms_norm_dynamic_quant,
        _quantised_rows,
    ),
    Operator(
        "_C_ascend",
        "moe_gating_top_k(Tensor x, int k, int k_group, int group_count, int group_select_mode, int renorm,"
        " int norm_type, bool out_flag, float routed_scaling_factor, float eps, Tensor? bias_opt=None)"
        " -> (Tensor y, Tensor expert_idx, Tensor out)",
        lambda *args, **kwargs: routing.moe_gating_top_k(**gating(*args, **kwargs)),
        lambda *args, **kwargs: npu.npu_moe_gating_top_k(**gating(*args, **kwargs)),
    ),
    Operator(
        "_C_ascend",
        "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None,"
        " Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None,"
        " bool activate_left=True, int quant_mode=0, int swiglu_mode=0, float clamp_limit=0.0, float glu_alpha=1.0,"
        " float glu_bias=0.0) -> (Tensor y, Tensor scale)",
        dequant_swiglu_quant,
        npu.npu_dequant_swiglu_quant,
    ),
    *(
        Operator(
            "_C_ascend",
            f"{name}(Tensor x, {kind} weight, {kind} weight_scale, {SWIGLU}",
            grouped_swiglu,
            _grouped_swiglu_fake,
        )
        for name, kind in (
            ("grouped_matmul_swiglu_quant", "Tensor"),
            ("grouped_matmul_swiglu_quant_weight_nz", "Tensor"),
            ("grouped_matmul_swiglu_quant_weight_nz_tensor_list", "Tensor[]"),
        )
    ),
    Operator(
        "_C_ascend",
        "grouped_matmul_swiglu_quant_v2(Tensor x, Tensor[] weight, Tensor[] weight_scale, Tensor x_scale,"
        " Tensor group_list, Tensor? smooth_scale=None, Tensor[]? weight_assist_matrix=None, Tensor? bias=None,"
        " int? dequant_mode=0, int? dequant_dtype=0, int? quant_mode=0, int? quant_dtype=0,"
        " bool transpose_weight=False, int group_list_type=0, int[2] tuning_config=[], float swiglu_limit=0.0)"
        " -> (Tensor output, Tensor output_scale)",
        grouped_swiglu_v2,
        _grouped_swiglu_v2_fake,
    ),
    Operator(
        "vllm",
        "quantize(Tensor in_tensor, Tensor input_scale, Tensor input_scale_reciprocal, Tensor input_offset) -> Tensor",
        quantize,
        lambda x, *scales: torch.empty_like(x, dtype=torch.int8),
    ),
    Operator(
        "vllm",
        "npu_rotary_embedding(Tensor positions, Tensor query, Tensor key, Tensor cos_sin_cache, SymInt head_dim,"
        " SymInt rotary_dim, bool is_neox_style=True) -> (Tensor, Tensor)",
        rotary_embedding,
        _two_alike,
    ),
    Operator("vllm", "unquantized_gemm(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", linear, linear),
    Operator(
        "vllm",
        "muls_add(Tensor x, Tensor y, float scale) -> Tensor",
        muls_add,
        lambda x, y, scale: torch.empty_like(x),
    ),
)
_libraries: list[torch.library.Library] = []


@cache
def install() -> None:
    """Define the operators; as in vllm-ascend they have kernels for the device, and here for the CPU too."""
    for operator in OPERATORS:
        library = torch.library.Library(operator.namespace, "FRAGMENT")
        library.define(operator.schema)
        torch.library.register_fake(operator.name, operator.fake, lib=library)
        _libraries.append(library)
        register(operator.name, Reference(operator.compute))
