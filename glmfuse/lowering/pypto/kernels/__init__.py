"""PyPTO kernels, one file each; loaded only in the worker process, or on a machine with an NPU."""
