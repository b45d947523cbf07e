"""From what a checkpoint holds to what an NPU's kernels read: pure functions of tensors on a CPU.

Each says its formula and where it is from. `vllm-ascend` means 182b75e, `process_weights_after_loading` of
quantization/methods; what it no longer has (int4 in groups) is cited by the commit that had it.
"""
