"""docs/aclnn.md has the table's kernels; the table is read here without torch_npu."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glmfuse.lowering.aclnn.registry import KERNELS
from glmfuse.lowering.aclnn.target import ACLNN
from glmfuse.lowering.targets import TARGETS

DOCUMENT = Path(__file__).parent.parent / "docs" / "aclnn.md"
ROUNDS = {True: "as the pattern", False: "otherwise"}


def test_the_table_names_every_kernel_its_operators_and_its_rounding() -> None:
    rows = [line.split(" | ")[:3] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    expected = [
        [f"| `{name}`", ", ".join(f"`{op}`" for op in kernel.ops), ROUNDS[kernel.rounds_alike]]
        for name, kernel in KERNELS.items()
    ]
    assert rows == expected


@pytest.mark.skipif("torch_npu" in sys.modules, reason="torch_npu is loaded")
def test_without_an_npu_the_target_says_what_to_do() -> None:
    assert ACLNN in TARGETS
    assert "install" in str(ACLNN.unavailable()) or "import torch_npu" in str(ACLNN.unavailable())
