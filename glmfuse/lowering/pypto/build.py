"""From the name of a builder to a jit function; imports pypto, so only a worker or an NPU's process loads it."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from glmfuse.lowering.pypto.process.messages import KernelRef


@cache
def build(kernel: KernelRef) -> Any:
    """The jit function of a kernel; built once in a process."""
    module, _, function = kernel.builder.rpartition(":")
    with _logging_kept():
        return getattr(_load(module), function)(**dict(kernel.arguments))


def _load(module: str) -> ModuleType:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(f"glmfuse_kernel_{Path(module).stem}", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # pypto looks up the sources of its classes there
    spec.loader.exec_module(loaded)
    return loaded


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Importing pypto gives the root logger a handler and its lowest level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
