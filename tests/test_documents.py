"""The code in README and CONTRIBUTING runs, as it stands there, from top to bottom."""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import quantised
from tests.support.expected import FAMILY, VERSIONS, Counts, Key, table

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def code_of(document: str) -> str:
    return "\n".join(BLOCK.findall((ROOT / document).read_text()))


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", "docs/quantised.md"])
def test_its_code_runs(document: str) -> None:
    code = code_of(document)
    assert code
    if document == "README.md":
        code = code.replace('backend="glmfuse"', 'backend="glmfuse", options={"engine": "eager"}')
    if document == "docs/quantised.md":
        code = code.replace('{"report": report}', '{"engine": "eager", "report": report}')
    name = f"<{document}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    with torch.enable_grad():
        namespace: dict[str, Any] = {"__name__": name}
        exec(compile(code, name, "exec"), namespace)


def test_the_readme_example_is_ten_lines() -> None:
    first = BLOCK.findall((ROOT / "README.md").read_text())[0]
    assert len(first.strip().splitlines()) <= 10


@pytest.mark.parametrize(("first", "counts"), [("model", FAMILY), ("transformers", VERSIONS)])
def test_the_readme_has_the_counts_that_the_tests_expect(first: str, counts: Mapping[Key, Counts]) -> None:
    assert table(first, counts) in (ROOT / "README.md").read_text()


def test_the_document_of_quantised_models_has_the_counts_that_the_tests_expect() -> None:
    assert quantised.table() in (ROOT / "docs/quantised.md").read_text()
