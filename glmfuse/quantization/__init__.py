"""Quantised models: what checkpoints hold, and what kernels read."""
