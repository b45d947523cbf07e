"""One run inside the worker: parse, tensor graph, passes, interpreter, cost model, as the mode asks."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pypto
import pypto.frontend.parser.entry as entry
import torch
from pypto import pypto_impl
from pypto.runtime import _pto_verify_datas

from glmfuse.lowering.pypto.process import calculator, passes
from glmfuse.lowering.pypto.process.messages import Mode, Outcome, Request
from glmfuse.lowering.pypto.process.timeline import Timeline

_STAGES = {
    Mode.INTERPRET: pypto.CompStage.TENSOR_GRAPH,
    Mode.COMPILE: pypto.CompStage.EXECUTE_GRAPH,
    Mode.VERIFY: pypto.CompStage.EXECUTE_GRAPH,
    Mode.SIMULATE: pypto.CompStage.ALL_COMPLETE,
}


def _set_up_verification(tensors: Any) -> None:
    """Without the calculator's own build, which ours replaces."""
    if pypto.get_verify_options().get("enable_pass_verify"):
        pypto_impl.SetVerifyData(entry._pto_to_tensor_data(tensors), [], _pto_verify_datas.get_data())


_CONVERT = entry.JitCallableWrapper._convert_tensors_with_metadata
_NZ: set[int] = set()
"""Places of the inputs in NZ, of the run under way: of tensors on a CPU, PyPTO takes none to be."""


def _convert(tensors: Any, definitions: Any) -> Any:
    """With the formats that the tensors would have on an NPU."""
    made = _CONVERT(tensors, definitions)
    for place in _NZ:
        name, form = definitions[place].name, pypto.TileOpFormat.TILEOP_NZ
        made[place] = pypto.from_torch(tensors[place], name, tensor_format=form, dtype=made[place].dtype)
    return made


entry.JitCallableWrapper._setup_verify_data = staticmethod(_set_up_verification)
entry.JitCallableWrapper._convert_tensors_with_metadata = staticmethod(_convert)


def execute(kernel: Any, request: Request, cache_folder: Path) -> Outcome:
    """Run a jit function once; an exception of pypto's is the caller's to catch."""
    folder = Path(tempfile.mkdtemp())
    os.environ["TILE_FWK_OUTPUT_DIR"] = str(folder)
    outputs = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in request.outputs)
    arguments = (*request.inputs, *outputs)
    numerics = request.mode is not Mode.SIMULATE
    kernel._host_options = {**(kernel._host_options or {}), "compile_stage": _STAGES[request.mode]}
    kernel._verify_options = {
        "enable_pass_verify": numerics,
        "pass_verify_save_tensor": numerics and request.mode is not Mode.VERIFY,  # it would save every pass's
        "pass_verify_pass_filter": ["all"] if request.mode is Mode.VERIFY else [],
    }
    started = passes.mark()
    _NZ.update(request.nz)
    try:
        if numerics:
            calculator.load(cache_folder)
            # An output is saved only where a golden is given; what is in it does not matter.
            pypto.set_verify_golden_data(goldens=[None] * len(request.inputs) + list(outputs))
        kernel(*arguments)
        return _read(folder, request, outputs, started)
    finally:
        _NZ.clear()
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path, request: Request, outputs: tuple[torch.Tensor, ...], started: passes.Mark) -> Outcome:
    if request.mode is Mode.SIMULATE:
        return Outcome(simulation=Timeline.read(folder).simulation(trace=request.trace))
    if request.mode is Mode.VERIFY:
        return Outcome(passes=passes.verdicts_since(started))
    first = len(request.inputs)
    tensors = tuple(_read_tensor(folder, first + index, like) for index, like in enumerate(outputs))
    return Outcome(tensors=tensors)


def _read_tensor(folder: Path, index: int, like: torch.Tensor) -> torch.Tensor:
    found = [
        path for path in sorted(folder.glob(f"output_*/verify_*/tensor_graph/tensor_graph~{index}~*.data"))
        if "golden" not in path.name
    ]  # fmt: skip
    if not found:
        raise RuntimeError(f"the interpreter wrote no tensor for argument {index}")
    raw = torch.frombuffer(bytearray(found[-1].read_bytes()), dtype=torch.uint8)
    return raw[: like.numel() * like.element_size()].view(like.dtype).reshape(like.shape).clone()
