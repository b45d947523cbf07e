"""Where kernels come from and who compiles the graph: targets and engines."""
