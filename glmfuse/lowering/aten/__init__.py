"""Kernels written in aten for the engine to compile: the same function, by fewer bytes."""
