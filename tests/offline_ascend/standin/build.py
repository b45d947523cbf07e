"""Build the stand-in libraries: `python -m tests.offline_ascend.standin.build FOLDER`, with torch_npu installed.

Nothing of CANN is copied. The functions are those that the installed wheel's own libraries leave undefined.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from pathlib import Path

from tests.offline_ascend.standin import StandInError
from tests.offline_ascend.standin.libraries import compile_all
from tests.offline_ascend.standin.symbols import missing

MANIFEST = "stand_ins.json"


def installed(package: str) -> Path:
    """The folder of an installed package, which is not imported: torch_npu cannot be, without the libraries."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise StandInError(f"{package} is not installed in {sys.prefix}; `make test-ascend` sets all of it up")
    return Path(spec.origin).parent


def build(folder: Path) -> str:
    """Build into `folder`, in place of what is there, and say what was built."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise StandInError(f"{folder} holds something else; name an empty or a new folder")
    wanted = missing(installed("torch_npu"), installed("torch"))
    shutil.rmtree(folder, ignore_errors=True)
    compile_all(wanted, folder)
    version = importlib.metadata.version("torch_npu")
    manifest = {"torch_npu": version, "libraries": wanted.libraries, "functions": wanted.functions}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return f"torch_npu {version}: {len(wanted.functions)} functions of {len(wanted.libraries)} libraries in {folder}"


def main(arguments: list[str]) -> int:
    """The command line: one folder."""
    if len(arguments) != 1:
        print("usage: python -m tests.offline_ascend.standin.build FOLDER", file=sys.stderr)
        return 2
    try:
        print(build(Path(arguments[0]).absolute()))
    except StandInError as error:
        print(f"stand-ins: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
