"""Small patterns and a target of their own, for decisions that a GLM does not force."""

from __future__ import annotations

import torch
from torch import Tensor

from glmfuse import Gain, Kernel, Target, pattern
from glmfuse.matching.pattern import Pattern


@pattern(dims={"x": "... H", "y": "... H", "z": "... H"})
def toy_mul_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x * y + z, all [..., hidden]."""
    return x * y + z


@pattern(dims={"x": "... H", "z": "... H"})
def toy_add_tanh(x: Tensor, z: Tensor) -> Tensor:
    """tanh(x + z), both [..., hidden]."""
    return torch.tanh(x + z)


@pattern(dims={"x": "... H"})
def toy_tanh_exp(x: Tensor) -> Tensor:
    """exp(tanh(x)), [..., hidden]."""
    return torch.exp(torch.tanh(x))


@pattern(dims={"x": "... H", "y": "... H"})
def toy_sin_cos(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """sin(x), and cos(sin(x)) + y: two outputs, [..., hidden]."""
    turned = torch.sin(x)
    return turned, torch.cos(turned) + y


@pattern(dims={"x": "... H", "y": "... H", "z": "... H"})
def toy_block(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """exp(tanh(x * y + z)), all [..., hidden]: a block of two of the others."""
    made: Tensor = toy_tanh_exp(toy_mul_add(x, y, z))
    return made


TOYS = (toy_mul_add, toy_add_tanh, toy_tanh_exp, toy_sin_cos)


def target(**gains: float | Gain) -> Target:
    """A target whose kernels are the toys' functions, with these gains; patterns not named have none."""
    return Target("toys", {toy.name: kernel(toy, gains[toy.name]) for toy in (*TOYS, toy_block) if toy.name in gains})


def kernel(toy: Pattern, gain: float | Gain) -> Kernel:
    """The pattern's function as a kernel; a gain that is a number is what is saved."""
    saved = gain if isinstance(gain, Gain) else Gain(0.0, gain, "as given")
    return Kernel(toy.function, gain_fn=lambda request: saved)
