"""Storage formats: torch_npu allocates what a format takes and remembers it; the numbers stay in their plain order.

So what is shown is who casts, when, and how much memory it takes; not that a kernel reads the format that it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.offline_ascend.standin.kernel import noted

FRACTAL_NZ = 29


def format_cast(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """A copy in another format, or the tensor itself where it has that format."""
    import torch_npu

    if torch_npu.get_npu_format(input) == acl_format:
        return input
    noted(torch.ops.npu.npu_format_cast.default)
    place = torch_npu.empty_with_format(input.shape, dtype=input.dtype, device=input.device, acl_format=acl_format)
    return place.copy_(input)


def install(library: torch.library.Library) -> None:
    """Register the cast; it works on npu tensors, since only they have formats."""
    library.impl("npu_format_cast", format_cast, "PrivateUse1", allow_override=True)
