"""The parent's side: one spawned worker, private in everything, used by one caller at a time."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from glmfuse.lowering.pypto.process.messages import Mode, Outcome, Request
from glmfuse.lowering.pypto.process.wire import receive, send

TIMEOUT = 300.0
"""Seconds for one run; the first one may build the calculator (about 20 s)."""

_RECYCLE_AFTER = 20
"""Cost-model runs before a fresh process: each leaks some 36 MiB."""

_LOG_TAIL = 4000


class Worker:
    """A process that owns pypto: its own folder, HOME, temporary files, logs and output.

    It is spawned, never forked; restarted after any error, since a failed compile poisons it; and killed
    when a run takes too long.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._folder = ""
        self._simulated = 0

    def call(self, request: Request, timeout: float) -> Outcome:
        """Run one request; what goes wrong is in the outcome, and the next call gets a fresh process."""
        if self._process is None or self._process.poll() is not None or self._simulated >= _RECYCLE_AFTER:
            self.close()
            self._start()
        assert self._connection is not None
        try:
            send(self._connection, request)
            outcome = receive(self._connection) if self._connection.poll(timeout) else _late(timeout)
        except (EOFError, OSError):
            outcome = Outcome(error=f"the worker died ({self._exit_status()})")
        self._simulated += request.mode is Mode.SIMULATE
        if outcome.error is not None:
            outcome = Outcome(error=outcome.error, log=outcome.log or self._log_tail())
            self.close()
        return outcome

    def close(self) -> None:
        """End the process and remove its folder."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process, self._connection, self._folder, self._simulated = None, None, "", 0

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="glmfuse-pypto-")
        self._connection, theirs = Pipe()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "glmfuse.lowering.pypto.process.serve",
                    str(theirs.fileno()),
                    str(cache_folder()),
                ],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        theirs.close()

    def _environment(self) -> dict[str, str]:
        """Without CANN, so that no kernel looks for a chip; with a python3 that skips pypto's plotting scripts."""
        tools = Path(self._folder, "bin")
        tools.mkdir()
        stub = tools / "python3"
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
        root = Path(__file__).resolve().parents[4]
        environment = {name: value for name, value in os.environ.items() if name != "ASCEND_HOME_PATH"}
        environment.update(
            TORCH_DEVICE_BACKEND_AUTOLOAD="0",
            HOME=self._folder,
            TMPDIR=self._folder,
            ASCEND_PROCESS_LOG_PATH=f"{self._folder}/log",
            TILE_FWK_OUTPUT_DIR=f"{self._folder}/out",
            ASCEND_GLOBAL_LOG_LEVEL="1",  # a pass's verdict is logged as information
            OMP_NUM_THREADS="1",
            PATH=f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            PYTHONPATH=os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        )
        return environment

    @property
    def _log(self) -> Path:
        return Path(self._folder, "worker.log")

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_TAIL:] if self._log.exists() else ""

    def _exit_status(self) -> str:
        status = self._process.wait(5) if self._process is not None else None
        return f"signal {-status}" if status is not None and status < 0 else f"status {status}"


def _late(timeout: float) -> Outcome:
    return Outcome(error=f"no answer within {timeout:g} s")


def cache_folder() -> Path:
    """Where the calculator library is kept: under the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glmfuse" / "pypto"


_LOCK = threading.Lock()
_WORKERS: dict[int, Worker] = {}
"""One worker for each process: a forked child must not use its parent's pipe."""


def run(request: Request, timeout: float = TIMEOUT) -> Outcome:
    """Run a kernel in this process's worker; callers from several threads wait for each other."""
    with _LOCK:
        return _WORKERS.setdefault(os.getpid(), Worker()).call(request, timeout)


@atexit.register
def _close() -> None:
    if (worker := _WORKERS.pop(os.getpid(), None)) is not None:
        worker.close()
