"""Makes glmfuse's quantizer known to transformers, where that is installed."""

from __future__ import annotations

import importlib.util

from glmfuse.ascend.aside import set_aside


def register() -> bool:
    """Whether `from_pretrained` now reads quantised checkpoints. Calling it again changes nothing."""
    if importlib.util.find_spec("transformers") is None:
        return False
    set_aside()  # transformers imports torch_npu wherever it is installed
    from glmfuse.quantization import mtp, quantizer  # noqa: F401

    mtp.serve_generate()
    return True
