"""What a PyPTO jit function is to its caller on an NPU, made of torch: it fills its outputs, and notes how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class FakeJit:
    """Called with inputs and outputs like the real one, which is not run here.

    compute: from the inputs to the output. calls: the addresses of the tensors of each call, which are not kept
    alive. observe: what else to note of a call, such as the current stream.
    """

    compute: Callable[..., Tensor]
    observe: Callable[..., Any] = lambda *tensors: None
    run_mode: int = 0
    calls: list[tuple[int, ...]] = field(default_factory=list)
    observed: list[Any] = field(default_factory=list)

    @property
    def _runtime_options(self) -> dict[str, int]:
        return {"run_mode": self.run_mode}

    def __call__(self, *tensors: Tensor) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        self.calls.append(tuple(tensor.data_ptr() for tensor in tensors))
        self.observed.append(self.observe(*tensors))
        with torch.no_grad():
            tensors[-1].copy_(self.compute(*tensors[:-1]))
