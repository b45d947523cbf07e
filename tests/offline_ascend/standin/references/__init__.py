"""What torch_npu's fused operators compute, in plain PyTorch.

The semantics are those of the public kernels and documents for Atlas A2 and A3, roundings included; sums run in the
CPU's order, and nothing has been compared with a chip. An argument that a reference does not take is refused.
"""

from __future__ import annotations

from tests.offline_ascend.standin.references import (
    cache,
    cast,
    experts,
    fused_infer,
    fusion,
    linear,
    norm,
    quant,
    rotary,
    routing,
    swiglu,
)
from tests.offline_ascend.standin.references.reference import Reference

TOPICS = (cache, cast, experts, fused_infer, fusion, linear, norm, quant, rotary, routing, swiglu)
REFERENCES: dict[str, Reference] = {name: ref for topic in TOPICS for name, ref in topic.OPS.items()}
