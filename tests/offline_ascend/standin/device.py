"""Kernels for the fake `npu:0`: aten's are the CPU's, torch_npu's are the references."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.offline_ascend.standin import StandInError, capture, formats
from tests.offline_ascend.standin.kernel import Kernel
from tests.offline_ascend.standin.references import REFERENCES
from tests.offline_ascend.standin.references.reference import Reference

KEY = "PrivateUse1"
# torch_npu's own kernels of these only allocate, set metadata, or come back to others; they run as they are.
NATIVE = frozenset(
    """empty empty_strided empty_like new_empty new_empty_strided set_ resize_ _reshape_alias _to_copy _copy_from
    _copy_from_and_resize record_stream is_pinned _pin_memory""".split()  # noqa: SIM905 (one line for each otherwise)
)
_libraries: list[torch.library.Library] = []  # registrations last as long as these


@cache
def install() -> int:
    """Give every aten operator that torch_npu has a kernel for the CPU's, and torch_npu's own their references.

    Views and allocation stay torch_npu's. Returns the number of aten overloads.
    """
    capture.install()
    for name, reference in REFERENCES.items():
        register(f"npu::{name}", reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        formats.install(_library("npu"))
    aten = _library("aten")
    overloads = [overload for overload in map(_overload, _names("aten::")) if overload and _computes(overload)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each takes the place of one of torch_npu's, as it is meant to
        for overload in overloads:
            _put(aten, overload, Kernel.of(overload))
        for overload, reference in EXCEPTIONS.items():
            _put(aten, overload, Kernel.of(overload, reference.compute, reference.shapes))
    return len(overloads)


def register(name: str, reference: Reference) -> None:
    """Let an operator compute its reference, on npu tensors and on the CPU's."""
    overload = _overload(name)
    if overload is None:
        raise StandInError(f"this torch_npu has no operator {name}")
    library = _library(name.split("::")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _put(library, overload, Kernel.of(overload, reference.compute, reference.shapes))
    library.impl(_short(overload), reference.compute, "CPU", allow_override=True)


def _histogram(x: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    """An npu counts integers; the CPU refuses them. Counts are exact in fp32 up to 2^24."""
    return torch.histc(x.float(), bins, min, max).to(x.dtype)


def _number(x: Tensor) -> Any:
    if capture.RECORDER.recording:
        raise StandInError("a number is read on the host while a graph is captured")
    return x.item()


EXCEPTIONS = {
    torch.ops.aten.histc.default: Reference(_histogram),
    # torch_npu 2.13 has no kernel for it, so torch's CompositeExplicitAutograd one runs, which reads the groups' ends
    # on the host and cannot be captured. With a kernel of the device's own, models reach the rest of the path.
    torch.ops.aten._grouped_mm.default: Reference(torch.ops.aten._grouped_mm.default),
    torch.ops.aten._local_scalar_dense.default: Reference(_number, _number),
}


def _put(library: torch.library.Library, overload: torch._ops.OpOverload, kernel: Kernel) -> None:
    library.impl(_short(overload), kernel, KEY, allow_override=True)


def _short(overload: torch._ops.OpOverload) -> str:
    return overload.__name__.removesuffix(".default")


def _library(namespace: str) -> torch.library.Library:
    _libraries.append(torch.library.Library(namespace, "IMPL"))
    return _libraries[-1]


def _names(prefix: str) -> list[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix) and has(name, KEY)]


def _overload(name: str) -> torch._ops.OpOverload | None:
    namespace, rest = name.split("::")
    base, _, variant = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return getattr(packet, variant or "default", None)


def _computes(overload: torch._ops.OpOverload) -> bool:
    schema = overload._schema
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return not view and schema.name.removeprefix("aten::") not in NATIVE
