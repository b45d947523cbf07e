"""Quantised GLM: schemes, the checkpoints that hold them, and what models and kernels make of them."""
