"""Imports run one way; nothing that only some users need is loaded for all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import glmfuse

ROOT = Path(glmfuse.__file__).parent
LAYERS = (
    ("errors", "options"),
    ("ascend",),
    (
        "report.stage",
        "report.left_over",
        "report.report",
        "report.text",
        "report.json",
        "report.graphml",
        "report.files",
        "report.lines",
        "report",
    ),
    ("capture",),
    ("canonicalize",),
    ("matching",),
    ("patterns",),
    ("dialects",),
    ("lowering",),
    ("rows", "left_over", "fuse"),
    ("breaks", "backend"),
    ("dry_run", "huggingface"),
    ("quantization",),
    ("cli",),
)
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


def layer(name: str) -> int:
    relative = name.removeprefix("glmfuse").lstrip(".")
    for index, members in enumerate(LAYERS):
        if any(relative == member or relative.startswith(f"{member}.") for member in members):
            return index
    raise AssertionError(f"{name} has no layer")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glmfuse."):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    name = module_name(path)
    for imported in imports(path):
        assert layer(imported) <= layer(name), f"{name} imports {imported}, which comes after it"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_nothing_optional_is_imported_for_all() -> None:
    script = "import sys, glmfuse, glmfuse.backend; print([m for m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    for optional in ("transformers", "torch_npu", "pypto"):
        assert f"'{optional}'" not in loaded
