"""The worker's side: builds kernels by name, runs them one at a time, answers until the pipe closes."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from glmfuse.lowering.pypto.process.messages import KernelRef, Outcome, Request
from glmfuse.lowering.pypto.process.wire import receive, send


@cache
def build(kernel: KernelRef) -> Any:
    """The jit function of a kernel; built once in a process."""
    module, _, function = kernel.builder.rpartition(":")
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


def serve(connection: Connection, cache_folder: Path) -> None:
    """Answer requests until the other side is gone."""
    from glmfuse.lowering.pypto.process.session import execute

    while True:
        try:
            request: Request = receive(connection)
        except EOFError:
            return
        try:
            outcome = execute(build(request.kernel), request, cache_folder)
        except Exception as error:  # the parent decides what becomes of it
            outcome = Outcome(error=f"{type(error).__name__}: {error}")
        send(connection, outcome)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]))
