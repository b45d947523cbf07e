"""Layers that `prepare` made, on an NPU: torch_npu's operators in the order in which vllm-ascend calls them.

torch_npu is not imported here: its operators are looked up when a layer runs.
"""
