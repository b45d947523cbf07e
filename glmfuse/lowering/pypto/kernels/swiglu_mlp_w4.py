"""A feed-forward layer of int8 rows and int4 weights, in one launch.

PyPTO multiplies no int4: vector cores take the bytes apart beside the first stage, and even and odd outputs are two
products of int8. Even and odd columns of the activation meet even and odd rows of the next weight, so nothing is put
back in order before the end.
"""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.feed_forward import PackedFeedForward
from glmfuse.lowering.pypto.kernels.codes import inverse_of, scaled_by, to_int8
from glmfuse.lowering.pypto.kernels.route_topk import SMALLEST
from glmfuse.lowering.pypto.kernels.swiglu import activated
from glmfuse.lowering.pypto.kernels.swiglu_mlp_quant import Coded, Layer
from glmfuse.lowering.pypto.kernels.vector import Block, widened
from glmfuse.lowering.pypto.tiling import round_up

Pair = tuple[Any, Any]
"""Even and odd columns of one value."""


def build(packed: PackedFeedForward) -> Any:
    """The kernel of `swiglu_mlp_w4a8_dynamic`, and where x comes as codes that of `quant_mlp_w4a8_dynamic`.

    x [tokens, hidden], floats or codes; per_token [tokens, 1] fp32, the scales of such codes; w_gate and w_up [hidden,
    inter / 2] of bytes, w_down [inter / 2, out], two rows in one; scales [groups, outputs / 2, 2] fp32 -> y_even, y_odd
    [tokens, out / 2]. merged: gate and up are the halves of w_gate. What a variant does not have is not read.
    """
    plan = packed.plan
    element = getattr(pypto, plan.dtype)
    given = pypto.DT_INT8 if plan.is_coded else element

    @pypto.frontend.jit()
    def swiglu_mlp_w4(
        x: pypto.Tensor([pypto.DYNAMIC, ...], given),
        per_token: pypto.Tensor([pypto.DYNAMIC, ...], pypto.DT_FP32),
        w_gate: pypto.Tensor([], pypto.DT_INT8),
        s_gate: pypto.Tensor([], pypto.DT_FP32),
        w_up: pypto.Tensor([], pypto.DT_INT8),
        s_up: pypto.Tensor([], pypto.DT_FP32),
        w_down: pypto.Tensor([], pypto.DT_INT8),
        s_down: pypto.Tensor([], pypto.DT_FP32),
        y_even: pypto.Tensor([pypto.DYNAMIC, ...], element),
        y_odd: pypto.Tensor([pypto.DYNAMIC, ...], element),
    ):
        tokens = x.shape[0]
        ups, s_ups = widening(packed, [w_gate, w_up], [s_gate, s_up])
        down = unpacked(w_down, packed.down_unpack)
        s_out = sorted_scales(s_down, packed.down_groups, plan.out)
        for i in pypto.loop((tokens + plan.block - 1) // plan.block, name="T", idx_name="i"):
            layer = Round(packed, Block(plan.block, i, tokens))
            layer.store(layer.down(layer.up(layer.rows(x, per_token), ups, s_ups), down, s_out), y_even, y_odd)

    return swiglu_mlp_w4


def widening(packed: PackedFeedForward, weights: list[Any], scales: list[Any]) -> tuple[list[Pair], list[Any]]:
    """Gate and up taken apart, or both in one; pypto's parser takes no comprehension in a jit body."""
    count, outputs = (1, 2 * packed.plan.inter) if packed.plan.merged else (2, packed.plan.inter)
    apart = [unpacked(weight, packed.unpack) for weight in weights[:count]]
    return apart, [sorted_scales(scale, packed.groups, outputs) for scale in scales[:count]]


def unpacked(weight: Any, tile: tuple[int, int]) -> Pair:
    """The low and the high nibble of each byte, two's complements, as int8.  [rows, bytes] int8 -> alike, alike.

    floor(byte / 16) is the high one with its sign; what remains is the low one, 16 too large from 8 on.
    """
    pypto.set_vec_tile_shapes(*tile)
    byte = pypto.cast(weight, pypto.DT_FP16)
    high = _floor(pypto.mul(byte, 0.0625))
    rest = pypto.sub(byte, pypto.mul(high, 16.0))
    low = pypto.sub(rest, pypto.mul(_floor(pypto.mul(rest, 0.125)), 16.0))
    return _as_int8(low), _as_int8(high)


def _floor(value: Any) -> Any:
    whole = pypto.cast(value, pypto.DT_INT32, pypto.CastMode.CAST_FLOOR)
    return pypto.cast(whole, pypto.DT_FP16, pypto.CastMode.CAST_ROUND)


def _as_int8(value: Any) -> Any:
    return pypto.cast(value, pypto.DT_INT8, pypto.CastMode.CAST_TRUNC, satmode=pypto.SaturationMode.ON)


def sorted_scales(scale: Any, groups: int, outputs: int) -> Any:
    """Scales of even and of odd outputs, a row each for each group.

    [groups, outputs / 2, 2] -> [2 groups, outputs / 2].
    pypto.gathermask would do it at the site, but the cost model does not know it.
    """
    half = outputs // 2
    pypto.set_vec_tile_shapes(1, round_up(half, SMALLEST), SMALLEST)
    return pypto.reshape(pypto.transpose(scale, 1, 2), [2 * groups, half], inplace=True)


class Round:
    """One round of the loop, for one block of the tokens."""

    def __init__(self, packed: PackedFeedForward, at: Block) -> None:
        self.packed = packed
        self.plan = packed.plan
        self.at = at
        self.element = getattr(pypto, packed.plan.dtype)

    def rows(self, x: Any, per_token: Any) -> Coded:
        """As of int8 weights."""
        return Layer(self.plan, self.at).rows(x, per_token)

    def up(self, rows: Coded, weights: list[Pair], scales: list[Any]) -> tuple[Pair, Any]:
        """Even and odd columns of the activation as codes, and the scale of each token."""
        plan, at, (codes, per_token) = self.plan, self.at, rows
        pypto.set_cube_tile_shapes(*plan.wide.arguments())
        sums = [tuple(self.products(codes, half) for half in weight) for weight in weights]
        both = [self.floats(index, sums, scales, per_token) for index in (0, 1)]
        active = [widened(activated(gate, up, self.element)) for gate, up in both]
        factor, scale = inverse_of(at, pypto.maximum(*(pypto.amax(pypto.abs(part), -1, True) for part in active)))
        return tuple(to_int8(pypto.mul(part, factor)) for part in active), scale

    def products(self, codes: Any, half: Any) -> list[Any]:
        """The sums of products of each group of inputs."""
        groups = self.packed.groups
        if groups == 1:
            return [pypto.matmul(codes, half, pypto.DT_INT32)]
        depth, width = self.plan.hidden // groups, half.shape[1]
        return [
            pypto.matmul(
                self.at.cut(codes, (group * depth, depth)),
                pypto.view(half, [depth, width], [group * depth, 0]),
                pypto.DT_INT32,
            )
            for group in range(groups)
        ]

    def floats(self, index: int, sums: list[Any], scales: list[Any], per_token: Any) -> tuple[Any, Any]:
        """Gate and up, their even (index 0) or odd columns, rounded."""
        plan, half = self.plan, self.plan.inter // 2
        pypto.set_vec_tile_shapes(plan.mid_rows, (2 if plan.merged else 1) * plan.mid_width)
        wide = [self.undone(part[index], scale, index, per_token) for part, scale in zip(sums, scales, strict=True)]
        pypto.set_vec_tile_shapes(plan.mid_rows, plan.mid_width)
        if not plan.merged:
            return wide[0], wide[1]
        return self.at.cut(wide[0], (0, half)), self.at.cut(wide[0], (half, half))

    def undone(self, sums: list[Any], scale: Any, index: int, per_token: Any) -> Any:
        """The groups' sums, each times its scale, added first to last, times the token's scale, rounded."""
        width = scale.shape[1]
        own = [pypto.view(scale, [1, width], [2 * group + index, 0]) for group in range(len(sums))]
        return pypto.cast(pypto.mul(scaled_by(sums, own), per_token), self.element)

    def down(self, active: tuple[Pair, Any], weight: Pair, scale: Any) -> list[Any]:
        """Even and odd outputs."""
        plan, groups = self.plan, self.packed.down_groups
        codes, per_token = active
        depth, width = plan.inter // 2 // groups, plan.out // 2
        results = []
        for index in (0, 1):
            pypto.set_cube_tile_shapes(*plan.narrow.arguments())
            halves = [
                [
                    pypto.matmul(
                        self.at.cut(codes[side], (group * depth, depth)),
                        pypto.view(weight[index], [depth, width], [group * depth, side * width]),
                        pypto.DT_INT32,
                    )
                    for side in (0, 1)
                ]
                for group in range(groups)
            ]
            pypto.set_vec_tile_shapes(plan.out_rows, plan.narrow.n)
            sums = [pypto.add(even, odd) for even, odd in halves]
            results.append(self.undone(sums, scale, index, per_token))
        return results

    def store(self, results: list[Any], *outputs: Any) -> None:
        """Even and odd outputs, each by itself."""
        pypto.set_vec_tile_shapes(self.plan.out_rows, self.plan.narrow.n)
        for result, output in zip(results, outputs, strict=True):
            self.at.put(result, output, 0)
