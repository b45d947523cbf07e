"""What the vector stages of several kernels share: a round's tokens, casts, and the scope of a task."""

# No `from __future__ import annotations` here: pypto reads the annotations of jit functions as objects.

from typing import Any

import pypto


class Block:
    """One round of a kernel's loop: `size` tokens from `start`, of which `valid` are there."""

    def __init__(self, size: int, index: Any, tokens: Any) -> None:
        self.size = size
        self.start = index * size
        self.valid = (tokens - index * size).min(size)

    def of(self, tensor: Any, *shape: int) -> Any:
        """This round's part of a tensor [tokens, *shape]."""
        return pypto.view(tensor, [self.size, *shape], [self.start, *[0] * len(shape)], valid_shape=self.sizes(*shape))

    def cut(self, value: Any, *parts: tuple[int, int]) -> Any:
        """Of a value [size, ...] the part of each further axis, (from, how many)."""
        shape = [count for _, count in parts]
        offsets = [0, *(first for first, _ in parts)]
        return pypto.view(value, [self.size, *shape], offsets, valid_shape=self.sizes(*shape))

    def put(self, value: Any, tensor: Any, *offsets: int) -> None:
        """Store a value of this round into a tensor [tokens, ...]."""
        pypto.assemble(value, [self.start, *offsets], tensor)

    def spread(self, weight: Any, *shape: int) -> Any:
        """A weight [1, *shape] for every token, in fp32.

        Spread before it is cast: a cast that several tiles share would be a task and a stage of its own.
        """
        return widened(pypto.expand_clone(weight, [self.size, *shape], valid_shape=self.sizes(*shape)))

    def full(self, value: float, *shape: int) -> Any:
        """A constant in fp32 [size, *shape]."""
        return pypto.full([self.size, *shape], value, pypto.DT_FP32, valid_shape=self.sizes(*shape))

    def sizes(self, *shape: int) -> list[Any]:
        """The valid shape of a value [size, *shape]."""
        return [self.valid, *shape]


def widened(value: Any) -> Any:
    """As fp32."""
    return pypto.cast(value, pypto.DT_FP32)


def rounded(value: Any, element: Any) -> Any:
    """Through the storage dtype and back to fp32: where the pattern's operators round."""
    return widened(pypto.cast(value, element))


def scope(number: int) -> None:
    """Keep the vector operators that follow in one task for each tile; -1 ends it."""
    pypto.set_pass_options(sg_set_scope=number)


def sigmoid(value: Any, one: Any) -> Any:
    """1 / (1 + e^-x) in fp32; pypto.sigmoid ignores valid_shape."""
    return pypto.div(one, pypto.add(pypto.exp(pypto.mul(value, -1.0)), 1.0))
