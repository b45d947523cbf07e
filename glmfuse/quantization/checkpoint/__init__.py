"""Quantised checkpoints in folders: `checkpoint.open(path)` reads one, `write` makes one."""

from glmfuse.quantization.checkpoint.reading import Checkpoint, open

__all__ = ["Checkpoint", "open"]
