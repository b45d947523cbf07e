"""One library that holds every missing function, and an empty one under each name that the wheel loads."""

from __future__ import annotations

from pathlib import Path

from tests.offline_ascend.standin.symbols import Missing, output, read, tool

ALL = "libcann_stand_in.so"
RUNTIME = Path(__file__).with_name("runtime.c")
FLAGS = ("-shared", "-fPIC", "-O1")


def compile_all(missing: Missing, folder: Path) -> None:
    """Build the libraries into `folder`."""
    compiler = tool("gcc")
    folder.mkdir(parents=True, exist_ok=True)
    runtime = folder / "runtime.o"
    output(compiler, "-c", *FLAGS[1:], "-Wall", "-o", str(runtime), str(RUNTIME))
    rest = folder / "functions.c"
    rest.write_text(source(missing, written(runtime, folder)))
    output(compiler, *FLAGS, "-o", str(folder / ALL), str(runtime), str(rest))
    for name in missing.libraries:
        _named(compiler, folder, name)


def source(missing: Missing, already: frozenset[str]) -> str:
    """C for the functions that need no more than to exist: each returns 0, which is ACL's word for success."""
    names = [name for name in missing.functions if name not in already]
    return "\n".join(
        [
            "/* Generated: functions that only have to be there. */",
            *map("long {0}(void);".format, names),
            *map("long {0}(void) {{ return 0; }}".format, names),
            "",
        ]
    )


def written(runtime: Path, folder: Path) -> frozenset[str]:
    """The functions that runtime.c has."""
    probe = folder / "probe.so"
    output(tool("gcc"), *FLAGS, "-o", str(probe), str(runtime))
    names = read(probe).defined
    probe.unlink()
    return names


def _named(compiler: str, folder: Path, name: str) -> None:
    """An empty library of that name, which brings the full one: dlsym on it finds every function."""
    link = (f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", f"-L{folder}", f"-l:{ALL}")
    output(compiler, *FLAGS, "-o", str(folder / name), *link, "-x", "c", "/dev/null")
