"""What the wheel's shared libraries expect of libraries that are not here, read from their dynamic symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.offline_ascend.standin import StandInError

# The C and C++ runtimes are wherever the compiler finds them.
SYSTEM = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)
LOADER = re.compile(r"^ld-linux")
INTERPRETER = re.compile(r"^_?Py")  # resolved by the Python that imports the wheel
DATA = re.compile(r"^_ZT[VITS]")  # vtables, type information: no function can stand in for them


@dataclass(frozen=True)
class Library:
    """A shared library's dynamic symbols, and the names of the libraries that it loads."""

    name: str
    defined: frozenset[str]
    undefined: frozenset[str]
    needed: frozenset[str]


@dataclass(frozen=True)
class Missing:
    """The libraries that nobody provides, and the functions that are expected of them."""

    libraries: tuple[str, ...]
    functions: tuple[str, ...]


def missing(wheel: Path, torch: Path) -> Missing:
    """What the libraries under `wheel` need beyond torch's and the system's.

    Raises:
        StandInError: something other than a function is expected.
    """
    ours = [read(path) for path in sorted(wheel.rglob("*.so*"))]
    provided = [*ours, *(read(path) for path in sorted((torch / "lib").glob("*.so*"))), *system()]
    there = {library.name for library in provided} | set(SYSTEM)
    defined = frozenset[str]().union(*(library.defined for library in provided))
    needed = frozenset[str]().union(*(library.needed for library in ours))
    undefined = frozenset[str]().union(*(library.undefined for library in ours)) - defined
    functions = {name for name in undefined if not INTERPRETER.match(name)}
    _no_data(functions)
    return Missing(tuple(sorted(n for n in needed - there if not LOADER.match(n))), tuple(sorted(functions)))


def _no_data(names: Iterable[str]) -> None:
    data = sorted(name for name in names if DATA.match(name))
    if data:
        raise StandInError(
            f"this torch_npu expects data of CANN's libraries ({', '.join(data[:3])}); the stand-ins can only make "
            "functions. Use torch_npu 2.13.0, which expects none."
        )


def system() -> list[Library]:
    """The C and C++ runtimes, and the loader, whose symbols are the C runtime's too."""
    compiler = tool("gcc")
    paths = [Path(output(compiler, f"-print-file-name={name}").strip()) for name in SYSTEM]
    loaders = [path for folder in ("/lib", "/lib64") for path in Path(folder).glob("ld-linux*")]
    return [read(path) for path in [*paths, *loaders] if path.exists()]


def read(path: Path) -> Library:
    """The dynamic section and the dynamic symbols of one library; weak undefined symbols may stay undefined."""
    text = output(tool("readelf"), "--dynamic", "--dyn-syms", "--wide", str(path))
    defined, undefined = set(), set()
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or not re.fullmatch(r"\d+:", fields[0]):
            continue
        binding, section, name = fields[4], fields[6], fields[7].split("@")[0]
        if section != "UND":
            defined.add(name)
        elif binding == "GLOBAL":
            undefined.add(name)
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", text)
    return Library(path.name, frozenset(defined), frozenset(undefined), frozenset(needed))


def tool(name: str) -> str:
    """The path of a program of the compiler's tool chain."""
    path = shutil.which(name)
    if path is None:
        raise StandInError(f"{name} is not installed; the stand-ins are compiled (apt install gcc binutils)")
    return path


def output(*command: str) -> str:
    """What a command prints; an error in its own words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StandInError(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
