"""`glmfuse doctor`: what is installed, what will be used for which part, and what to install for the rest."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

from glmfuse.ascend import cann, installed
from glmfuse.ascend.aside import Aside, hide, loads_itself
from glmfuse.ascend.versions import RUN, engines_of

_SECONDS = 120
_RAISED = re.compile(r"^\S*(?:Error|Exception): .*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Part:
    """What can be installed. found: its version, or None. note: what to install, or to know."""

    name: str
    found: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What models on a device get. targets: in order of preference. passed_over: name and reason of the others."""

    device: str
    engine: str | None
    targets: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]

    @property
    def is_compiled(self) -> bool:
        """Whether an engine compiles there; "eager" only runs."""
        return self.engine not in (None, "eager")


@dataclass(frozen=True, slots=True)
class Health:
    """The answer.

    uses: of the CPU, and then of the NPU where there is one. broken: why `import torch` fails here, or None.
    """

    parts: tuple[Part, ...]
    uses: tuple[Use, ...]
    broken: str | None

    @property
    def is_usable(self) -> bool:
        """Whether torch imports, and there is an engine that compiles for the NPU, or without one for the CPU."""
        return self.broken is None and self.uses[-1].is_compiled


def doctor(aside: Aside | None, *, as_json: bool) -> int:
    """Print what is here; 0 when glmfuse is usable, 1 otherwise.

    aside: the torch_npu that this process does without, if it does.
    """
    health = examine(aside)
    print(json.dumps({"usable": health.is_usable, **asdict(health)}, indent=1) if as_json else "\n".join(_text(health)))
    return 0 if health.is_usable else 1


def examine(aside: Aside | None) -> Health:
    """Look at this environment. Where torch_npu would break the import of torch, go on without it."""
    if aside is None and "torch" not in sys.modules and loads_itself() and (reason := _import_failure()) is not None:
        aside = Aside(reason, breaks_torch=True)
        hide()
    broken = aside.reason if aside is not None and aside.breaks_torch else None
    return Health(tuple(_parts(aside)), tuple(_uses()), broken)


def _import_failure() -> str | None:
    """What `import torch` raises in a process of its own, where it may also abort."""
    try:
        tried = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"`import torch` does not end within {_SECONDS} s"
    if tried.returncode == 0:
        return None
    raised = _RAISED.findall(tried.stderr) or [f"the process ends with status {tried.returncode}"]
    return f"`import torch` fails as it imports torch_npu: {raised[0]}"


def _parts(aside: Aside | None) -> Iterator[Part]:
    yield Part("Python", platform.python_version())
    yield _package("torch", "install it with: pip install torch")
    yield _torch_npu(aside)
    home = cann.home()
    found = None if home is None else cann.version(home) or f"of unknown version in {home}"
    yield Part("CANN", found, cann.unavailable())
    names, count = sorted(set(installed.soc_names())), installed.device_count()
    yield Part("NPU", f"{count} x {', '.join(names)}" if count else None)
    yield _package("pypto", "for kernels of NPUs and their interpreter: pip install 'glmfuse[pypto]'")
    yield _package("transformers", "for the commands demo and explain: pip install 'glmfuse[hf]'")
    yield _compiler()


def _package(name: str, install: str) -> Part:
    try:
        return Part(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Part(name, None, f"{name} is not installed; {install}")


def _torch_npu(aside: Aside | None) -> Part:
    build = installed.torch_npu_version()
    reason = aside.reason if aside is not None else installed.unavailable()
    if build is None or reason is not None:
        return Part("torch_npu", build, reason)
    known = engines_of(build)
    if isinstance(known, str):
        return Part("torch_npu", build, known)
    return Part("torch_npu", build, None if build == RUN else f"glmfuse was tried with torch_npu {RUN} alone")


def _compiler() -> Part:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return Part("C++ compiler", get_cpp_compiler())
    except InvalidCxxCompiler:
        return Part("C++ compiler", None, "no C++ compiler is there; install g++ or clang++, for Inductor")


def _uses() -> Iterator[Use]:
    from glmfuse.lowering.engines import ENGINES
    from glmfuse.lowering.targets import REFERENCE, TARGETS

    targets = [(target.name, target.unavailable() or target.not_by_default()) for target in TARGETS]
    for device in ("cpu", "npu") if installed.has_npu() else ("cpu",):
        engines = [(engine.name, engine.unavailable(device)) for engine in ENGINES if engine.is_for(device)]
        usable = [name for name, reason in engines if reason is None]
        passed_over = [
            *((f"engine {name}", reason) for name, reason in engines if reason is not None),
            *((f"target {name}", reason) for name, reason in targets if reason is not None),
        ]
        names = (*(name for name, reason in targets if reason is None), REFERENCE)
        yield Use(device, next(iter(usable), None), names, tuple(passed_over))


def _text(health: Health) -> Iterator[str]:
    yield "installed"
    for part in health.parts:
        yield f"  {part.name:<14}{part.found or '-'}"
    for use in health.uses:
        yield f"a model on {use.device} gets"
        yield f"  engine        {use.engine or '-'}"
        yield f"  targets       {', '.join(use.targets)}"
        for name, reason in use.passed_over:
            yield f"  not {name}: {reason}"
    yield from _list("to install, or to know", [part.note for part in health.parts if part.note])
    yield f"usable: {'yes' if health.is_usable else 'no'}" + ("; `import torch` fails here" if health.broken else "")


def _list(title: str, items: list[str]) -> Iterator[str]:
    if items:
        yield title
        yield from (f"  {item}" for item in items)
