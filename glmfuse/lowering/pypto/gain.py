"""What a PyPTO kernel saves at a site, from the committed table of simulated times: planning runs no simulator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any, TypeAlias

import sympy
import torch

from glmfuse.lowering.pypto.family import geometry, layouts
from glmfuse.matching.select import Gain, Request

TABLE = "times.json"
"""Made by benchmarks/pypto_times.py."""

Size: TypeAlias = int | sympy.Expr


@dataclass(frozen=True, slots=True)
class Row:
    """Simulated microseconds of a kernel, and of the `kernels` that it replaces."""

    tokens: int
    fused: float
    apart: float
    kernels: int

    def gain(self, request: Request, shape: str, rounds: float) -> Gain:
        """With launches, for so many times this row's tokens.

        Where the graph has fewer operators than the pattern function, these do more each: `npu_rms_norm` is one for
        eight, and takes an eighth of what the eight take.
        """
        launch, is_block = request.launch_us, request.pattern.level > 0
        basis = f"simulated, {shape}, {self.tokens} tokens, {launch:g} us a launch"
        share = 1.0 if is_block else min(1.0, request.operators / self.kernels)
        apart = share * (rounds * self.apart + self.kernels * launch)
        return Gain(rounds * self.fused + launch, apart, basis, over_parts=is_block)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a kind of site has in common over all numbers of tokens.

    fixed: for each tensor its sizes, without those that vary with the tokens and without ones; varying: the
    tensors that have such sizes.
    """

    fixed: Mapping[str, tuple[int, ...]]
    varying: frozenset[str]
    counts: Mapping[str, int]

    def tokens(self, request: Request) -> Size | None:
        """The tokens of a site of these sizes, or None where it is another kind of site."""
        wanted = {name: value for name, value in request.scalars.items() if type(value) is int}
        if any(self.counts.get(name) != value for name, value in wanted.items()):
            return None
        if not set(request.tensors) <= set(self.fixed):
            return None
        for name, layout in request.tensors.items():
            fixed, shape = self.fixed[name], [size for size in layout.shape if size != 1]
            if name not in self.varying and tuple(shape) != fixed:
                return None
            if name in self.varying and Counter(fixed) - Counter(shape):
                return None
        first = next(name for name in request.tensors if name in self.varying)
        total = prod(request.tensors[first].shape)
        tokens = sympy.Rational(1, prod(self.fixed[first])) * total
        return int(tokens) if tokens.is_Integer else None if tokens.is_number else tokens


def gain(request: Request, spared: int = 0) -> Gain:
    """Simulated where the table has the site's sizes; by the launches saved where it has not.

    spared: launches that the pattern is worth beyond the operators that spell it.
    Where the number of tokens varies it is the least gain of all numbers in the table.
    """
    for shape, rows in _table().get(request.pattern.name, {}).items():
        tokens = _sizes(request.pattern.name, shape).tokens(request)
        if tokens is not None:
            gains = [row.gain(request, shape, rounds) for row, rounds in _rows_for(rows, tokens)]
            return min(gains, key=lambda found: found.saved)
    return Gain.of_launches(request.compute_nodes + spared, request.launch_us)


def _rows_for(rows: tuple[Row, ...], tokens: Size) -> Iterator[tuple[Row, float]]:
    """The rows that tell of so many tokens: the next larger one, or the largest, several times."""
    if not isinstance(tokens, int):
        yield from ((row, 1.0) for row in rows)
        return
    larger = [row for row in rows if row.tokens >= tokens]
    yield (larger[0], 1.0) if larger else (rows[-1], tokens / rows[-1].tokens)


@cache
def _table() -> Mapping[str, Mapping[str, tuple[Row, ...]]]:
    """Rows by pattern and shape, fewest tokens first."""
    raw: dict[str, Any] = json.loads(files(__package__).joinpath(TABLE).read_text())
    table: dict[str, dict[str, tuple[Row, ...]]] = {}
    for name, rows in raw["times"].items():
        pattern, shape = name.split()
        ordered = sorted((Row(int(tokens), *row) for tokens, row in rows.items()), key=lambda row: row.tokens)
        table.setdefault(pattern, {})[shape] = tuple(ordered)
    return table


@cache
def _sizes(pattern: str, shape: str) -> Sizes:
    two, three = (layouts(pattern, geometry(shape), tokens, torch.bfloat16) for tokens in (2, 3))
    fixed, varying = {}, set()
    for name, value in two.items():
        if not isinstance(value, torch.Tensor):
            continue
        pairs = list(zip(value.shape, three[name].shape, strict=True))
        fixed[name] = tuple(a for a, b in pairs if a == b and a != 1)
        if any(a != b for a, b in pairs):
            varying.add(name)
    counts = {name: value for name, value in two.items() if type(value) is int}
    return Sizes(fixed, frozenset(varying), counts)
