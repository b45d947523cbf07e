"""Stand-ins for what torch_npu expects beside it: CANN's libraries, the kernels of an NPU, the graph engine.

Nothing here is CANN and nothing here is a chip: one fake `npu:0` lies in host memory, and its kernels are the CPU's.
"""

from __future__ import annotations


class StandInError(RuntimeError):
    """The stand-ins cannot be built or loaded here, or were asked for what a device would refuse."""
