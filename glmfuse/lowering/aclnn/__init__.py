"""The fused operators of torch_npu as kernels, inlined so that the engine sees the operators themselves."""
