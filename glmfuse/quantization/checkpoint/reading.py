"""A quantised checkpoint as it lies in a folder: what it says, and its tensors one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from glmfuse.errors import CheckpointError, Problem
from glmfuse.quantization.checkpoint import compressed_tensors, modelslim
from glmfuse.quantization.checkpoint.described import Described, by_module, compared, disagreements, linear_of
from glmfuse.quantization.checkpoint.headers import Stored, read_json, stored
from glmfuse.quantization.schemes import FLOAT, Form, Kind, Linear, is_row_parallel, problems_of

_SYMMETRIC = ("weight_offset", "weight_offset_second")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose description and tensors agree.

    config: its config.json. modules: what each module holds, by the names below the module's.
    """

    folder: Path
    config: Mapping[str, Any]
    described: Described
    modules: Mapping[str, Mapping[str, Stored]]

    def kind_of(self, module: str) -> Kind:
        """The type of a module, by its full name: FLOAT where it is not quantised."""
        self._require(module)
        return self.described.kinds.get(module, FLOAT)

    def form_of(self, module: str) -> Form:
        """How a module's tensors lie."""
        self._require(module)
        return self.described.forms.get(module, Form())

    def linear_of(self, module: str) -> Linear:
        """The sizes of a linear layer, of any type."""
        return linear_of(module, self.form_of(module), self.kind_of(module), self.modules[module])

    def tensors(self, module: str) -> dict[str, Tensor]:
        """The tensors of a module, by the names below it, read now.

        CheckpointError: there is no such module, or its weights are not symmetric, which no kernel here reads.
        """
        self._require(module)
        read = {name: _opened(*_version(at.file)).get_tensor(f"{module}.{name}") for name, at in self._of(module)}
        asymmetric = [name for name in _SYMMETRIC if name in read and read[name].count_nonzero()]
        if asymmetric:
            raise self._error([Problem(module, "symmetric weights", f"{', '.join(asymmetric)} other than zero")])
        return read

    def validate(self, expected: Mapping[str, tuple[int, ...]], tp: int = 1) -> None:
        """Hold the checkpoint against a model.

        expected: the shape of each module's weight as the model has it, [out, in] for a linear layer, by full names;
        quantised layers beyond these are an error. tp: among how many devices layers are split. CheckpointError names
        every problem at once.
        """
        problems = list(self._against(expected, tp))
        if problems:
            raise self._error(problems)

    def _against(self, expected: Mapping[str, tuple[int, ...]], tp: int) -> Iterator[Problem]:
        for module in sorted(self.described.kinds.keys() - expected.keys()):
            yield Problem(module, "no such layer in the model", ", ".join(self.modules[module]))
        for module, shape in expected.items():
            if module not in self.modules:
                yield Problem(module, f"a weight {list(shape)}", "no such layer in the checkpoint")
            elif len(shape) == 2:
                yield from self._sizes(module, (shape[0], shape[1]), tp)
            elif (weight := self.modules[module].get("weight")) is None or weight.shape != shape:
                yield Problem(module, f"a weight {list(shape)}", str(weight or "none"))

    def _sizes(self, module: str, shape: tuple[int, int], tp: int) -> Iterator[Problem]:
        kind, form, tensors = self.kind_of(module), self.form_of(module), self.modules[module]
        linear = Linear(*shape, is_row_parallel(module), "bias" in tensors)
        impossible = problems_of(module, kind, linear, form, tp)
        yield from impossible
        if not impossible and kind is not FLOAT:
            yield from compared(module, kind, linear, form, tensors)
        elif kind is FLOAT and ((weight := tensors.get("weight")) is None or weight.shape != shape):
            yield Problem(module, f"a weight {list(shape)}", str(weight or "none"))

    def _of(self, module: str) -> list[tuple[str, Stored]]:
        return list(self.modules[module].items())

    def _require(self, module: str) -> None:
        if module not in self.modules:
            raise self._error([Problem(module, "a module of this name", "none")])

    def _error(self, problems: list[Problem]) -> CheckpointError:
        return CheckpointError(str(self.folder), problems)


def open(folder: str | Path) -> Checkpoint:
    """Read what a checkpoint says and which tensors it has, without their data.

    CheckpointError: it is in no format that is read here, a file is missing or cut off, or description and tensors
    disagree; with every layer, what is expected and what was found.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    tensors = stored(folder)
    modules = {
        module: {name: tensors[f"{module}.{name}"] for name in names} for module, names in by_module(tensors).items()
    }
    described = _described(folder, config, tensors, modules)
    if problems := list(disagreements(described, modules)):
        raise CheckpointError(str(folder), problems)
    return Checkpoint(folder, config, described, modules)


def _described(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Stored], modules: Mapping[str, Any]
) -> Described:
    said = config.get("quantization_config") or {}
    if said.get("quant_method") == "compressed-tensors":
        return compressed_tensors.read(said, modules)
    if (folder / modelslim.FILE).exists():
        return modelslim.read(folder, tensors)
    wanted = f"{modelslim.FILE}, or a quantization_config of compressed-tensors in config.json"
    raise CheckpointError(str(folder), [Problem("the folder", wanted, f"quant_method {said.get('quant_method')!r}")])


def _version(file: Path) -> tuple[Path, int]:
    """A file as it is now: what is kept open of it is not that of another that took its place."""
    return file, file.stat().st_mtime_ns


@lru_cache(maxsize=4)
def _opened(file: Path, _changed: int) -> Any:
    """A file mapped into memory; layers come in the order of files, so few are open."""
    return safe_open(file, framework="pt")
