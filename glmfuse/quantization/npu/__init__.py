"""Layers that `prepare` made, on an NPU: torch_npu's operators in the order in which vllm-ascend calls them.

torch_npu is not imported here: its operators are looked up when a layer runs.
"""

from glmfuse.quantization.npu.move import to_npu

__all__ = ["to_npu"]
