"""The front of a decoder layer in one launch: three stages, vector, cube, vector."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto

from glmfuse.lowering.pypto.front import Front
from glmfuse.lowering.pypto.kernels.rms_norm import normalise


def build(front: Front) -> Any:
    """The kernel of `norm_qkv_rope`.

    x, residual [tokens, hidden]; gamma [1, hidden] fp32; weights [out, in]; biases [1, heads, head_dim] and
    norm weights [1, heads, head_dim] in fp32, spread over the heads; cos, sin [tokens, 1, rotary] ->
    q [tokens, heads, head_dim], k, v, and with a residual the sum. What a variant does not have is passed
    as any small tensor and not read.
    """
    element = getattr(pypto, front.dtype)
    if front.has_residual:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            residual: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], pypto.DT_FP32),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            b_q: pypto.Tensor([], pypto.DT_FP32),
            b_k: pypto.Tensor([], pypto.DT_FP32),
            b_v: pypto.Tensor([], pypto.DT_FP32),
            g_q: pypto.Tensor([], pypto.DT_FP32),
            g_k: pypto.Tensor([], pypto.DT_FP32),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
            total: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                valid = (tokens - i * front.block).min(front.block)
                hidden = add_and_norm(front, x, residual, gamma, total, i, valid)
                heads(front, hidden, [w_q, w_k, w_v], [b_q, b_k, b_v], [g_q, g_k], cos, sin, [q, k, v], i, valid)

    else:

        @pypto.frontend.jit(runtime_options={"run_mode": pypto.RunMode.SIM})
        def norm_qkv_rope(
            x: pypto.Tensor([pypto.DYNAMIC, ...], element),
            gamma: pypto.Tensor([], pypto.DT_FP32),
            w_q: pypto.Tensor([], element),
            w_k: pypto.Tensor([], element),
            w_v: pypto.Tensor([], element),
            b_q: pypto.Tensor([], pypto.DT_FP32),
            b_k: pypto.Tensor([], pypto.DT_FP32),
            b_v: pypto.Tensor([], pypto.DT_FP32),
            g_q: pypto.Tensor([], pypto.DT_FP32),
            g_k: pypto.Tensor([], pypto.DT_FP32),
            cos: pypto.Tensor([pypto.DYNAMIC, ...], element),
            sin: pypto.Tensor([pypto.DYNAMIC, ...], element),
            q: pypto.Tensor([pypto.DYNAMIC, ...], element),
            k: pypto.Tensor([pypto.DYNAMIC, ...], element),
            v: pypto.Tensor([pypto.DYNAMIC, ...], element),
        ):
            tokens = x.shape[0]
            for i in pypto.loop((tokens + front.block - 1) // front.block, name="T", idx_name="i"):
                valid = (tokens - i * front.block).min(front.block)
                hidden = add_and_norm(front, x, None, gamma, None, i, valid)
                heads(front, hidden, [w_q, w_k, w_v], [b_q, b_k, b_v], [g_q, g_k], cos, sin, [q, k, v], i, valid)

    return norm_qkv_rope


def add_and_norm(front: Front, x: Any, residual: Any, gamma: Any, total: Any, i: Any, valid: Any) -> Any:
    """The residual sum, stored, and its RMSNorm."""
    element = getattr(pypto, front.dtype)
    shape = [front.block, front.hidden]
    pypto.set_vec_tile_shapes(front.rows, front.width)
    part = pypto.view(x, shape, [i * front.block, 0], valid_shape=[valid, front.hidden])
    if residual is not None:
        other = pypto.view(residual, shape, [i * front.block, 0], valid_shape=[valid, front.hidden])
        part = pypto.cast(pypto.add(pypto.cast(part, pypto.DT_FP32), pypto.cast(other, pypto.DT_FP32)), element)
        pypto.assemble(part, [i * front.block, 0], total)
    return normalise(part, gamma, front.hidden, front.eps, element)


def heads(
    front: Front, hidden: Any, weights: list[Any], biases: list[Any], gains: list[Any], cos: Any, sin: Any,
    outputs: list[Any], i: Any, valid: Any,
) -> None:  # fmt: skip
    """Projections, and on their results bias, norm of each head, rotary."""
    counts = [front.heads, front.kv_heads, front.kv_heads]
    for index, part in enumerate(project(front, hidden, weights, valid)):
        count = counts[index]
        pypto.set_vec_tile_shapes(front.head_rows, count, front.head_dim)
        value = pypto.add(part, biases[index]) if front.has_bias else part
        value = rounded(front, value)
        if index < 2:
            if front.has_qk_norm:
                value = normalise_heads(front, value, gains[index])
            value = rotate(front, value, count, cos, sin, i, valid)
        shape = [front.block, count, front.head_dim]  # concat and add lose the valid shape
        value = pypto.view(value, shape, [0, 0, 0], valid_shape=[valid, count, front.head_dim])
        pypto.assemble(pypto.cast(value, getattr(pypto, front.dtype)), [i * front.block, 0, 0], outputs[index])


def project(front: Front, hidden: Any, weights: list[Any], valid: Any) -> list[Any]:
    """q, k and v as fp32 [block, heads, head_dim]; the product is reshaped, since it lies in memory anyway."""
    cube = front.cube
    pypto.set_cube_tile_shapes(*cube.arguments())
    counts = [front.heads, front.kv_heads, front.kv_heads]
    if front.merged:
        whole = sum(counts)
        product = pypto.matmul(hidden, weights[0], pypto.DT_FP32, b_trans=True)
        pypto.set_vec_tile_shapes(front.head_rows, whole, front.head_dim)
        product = spread(front, product, whole, valid)
        starts = [0, counts[0], counts[0] + counts[1]]
        return [
            pypto.view(product, [front.block, counts[j], front.head_dim], [0, starts[j], 0],
                       valid_shape=[valid, counts[j], front.head_dim])
            for j in range(3)
        ]  # fmt: skip
    products = [pypto.matmul(hidden, weight, pypto.DT_FP32, b_trans=True) for weight in weights]
    pypto.set_vec_tile_shapes(front.head_rows, front.heads, front.head_dim)
    return [spread(front, products[j], counts[j], valid) for j in range(3)]


def spread(front: Front, product: Any, count: int, valid: Any) -> Any:
    """[block, heads * head_dim] -> [block, heads, head_dim], in place."""
    shape = [front.block, count, front.head_dim]
    return pypto.reshape(product, shape, valid_shape=[valid, count, front.head_dim], inplace=True)


def rounded(front: Front, value: Any) -> Any:
    """Through the storage dtype and back to fp32: where the pattern's operators round."""
    return pypto.cast(pypto.cast(value, getattr(pypto, front.dtype)), pypto.DT_FP32)


def normalise_heads(front: Front, value: Any, gain: Any) -> Any:
    """RMSNorm over head_dim."""
    mean = pypto.sum(pypto.mul(pypto.mul(value, value), 1.0 / front.head_dim), -1, keepdim=True)
    scaled = pypto.div(value, pypto.sqrt(pypto.add(mean, front.eps)))
    return rounded(front, pypto.mul(rounded(front, scaled), gain))


def rotate(front: Front, value: Any, count: int, cos: Any, sin: Any, i: Any, valid: Any) -> Any:
    """Rotate the first channels by halves, each product and the sum rounded; pass the rest."""
    half = front.rotary // 2

    def angle(table: Any, start: int) -> Any:
        part = pypto.view(table, [front.block, 1, half], [i * front.block, 0, start], valid_shape=[valid, 1, half])
        return pypto.cast(part, pypto.DT_FP32)

    def channels(start: int, size: int) -> Any:
        return pypto.view(value, [front.block, count, size], [0, 0, start], valid_shape=[valid, count, size])

    first, second = channels(0, half), channels(half, half)
    turned = [
        pypto.sub(rounded(front, pypto.mul(first, angle(cos, 0))), rounded(front, pypto.mul(second, angle(sin, 0)))),
        pypto.add(
            rounded(front, pypto.mul(second, angle(cos, half))), rounded(front, pypto.mul(first, angle(sin, half)))
        ),
    ]
    if front.rotary < front.head_dim:
        turned.append(channels(front.rotary, front.head_dim - front.rotary))
    return pypto.concat(turned, 2)
