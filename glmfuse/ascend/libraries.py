"""Which of CANN's libraries torch_npu would not find, asked without loading any into this process.

Importing torch_npu without them fails half-way, and fails `import torch` with it where torch loads its backends.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

_TRY: Final = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
"""
_SECONDS: Final = 60
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS = 1, 5


@cache
def missing(library: Path) -> tuple[str, ...]:
    """Sonames that this library and those beside it need, and the loader does not find; sorted.

    The loader is asked in a process of its own, once: what it loads may run code, or abort.
    """
    asked = sorted(name for name in _outside(library) if not (_is_torch(name) or _is_resident(name)))
    if not asked:
        return ()
    command = [sys.executable, "-I", "-S", "-c", _TRY, *asked]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(tried.stdout.split())


def _outside(library: Path) -> set[str]:
    """What is needed from elsewhere, followed through the libraries in the same folder."""
    found, outside = [library], set()
    for file in found:
        for name in needed(file):
            beside = library.parent / name
            if not beside.exists():
                outside.add(name)
            elif beside not in found:
                found.append(beside)
    return outside


def needed(file: Path) -> tuple[str, ...]:
    """Sonames of the DT_NEEDED entries of a 64-bit little-endian ELF file; none where there is no such file.

    Source: System V ABI, chapters 4 and 5 (program header, dynamic section).
    """
    data = file.read_bytes() if file.exists() else b""
    if data[:6] != b"\x7fELF\x02\x01":
        return ()
    segments = list(_segments(data))
    dynamic = next((list(_entries(data, at, size)) for kind, at, _, size in segments if kind == _DYNAMIC), [])
    address = dict(dynamic).get(_STRINGS, 0)
    strings = next(
        (at + address - virtual for kind, at, virtual, size in segments
         if kind == _LOAD and virtual <= address < virtual + size), 0
    )  # fmt: skip
    return tuple(_string(data, strings + value) for tag, value in dynamic if tag == _NEEDED)


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset in the file, address and size in the file of each program header."""
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _, at, virtual, _, length = struct.unpack_from("<IIQQQQ", data, offset + index * size)
        yield kind, at, virtual, length


def _entries(data: bytes, at: int, size: int) -> Iterator[tuple[int, int]]:
    return struct.iter_unpack("<QQ", data[at : at + size])


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _is_torch(name: str) -> bool:
    """Torch's own, which lie in its wheel and are loaded before torch_npu's."""
    return name.startswith(("libtorch", "libc10"))


def _is_resident(name: str) -> bool:
    """Whether this process has it already, as it has the C library."""
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True
