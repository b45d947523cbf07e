"""Quantised GLM: schemes, the checkpoints that hold them, and what models and kernels make of them.

`import glmfuse.quantization` makes the checkpoints known to transformers: from_pretrained(folder) then builds the
layers that the folder describes.
"""

from glmfuse.quantization.register import register

register()
