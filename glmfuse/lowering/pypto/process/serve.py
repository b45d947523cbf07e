"""The worker's side: builds kernels by name, runs them one at a time, answers until the pipe closes."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from pathlib import Path

from glmfuse.lowering.pypto.build import build
from glmfuse.lowering.pypto.process.messages import Outcome, Request
from glmfuse.lowering.pypto.process.wire import receive, send


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
