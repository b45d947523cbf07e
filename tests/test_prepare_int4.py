"""int4 in bytes and words, and matrices in NZ: against shifts of Python's integers and numpy's own indexing."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from glmfuse.errors import QuantizationError
from glmfuse.quantization.prepare import int4, nz

SEEDS = range(12)
DTYPES = (torch.int8, torch.bfloat16, torch.int32, torch.float32, torch.uint8)


def drawn(*shape: int) -> Tensor:
    return torch.randint(int4.LEAST, int4.MOST + 1, shape, dtype=torch.int8)


def word_of(values: list[int]) -> int:
    """Eight int4 as one signed integer of 32 bits, the first lowest."""
    total = sum((value % 16) << (4 * place) for place, value in enumerate(values))
    return total - 2**32 if total >= 2**31 else total


def sizes(seed: int) -> tuple[int, int, int]:
    random.seed(seed)
    return random.randint(1, 4), random.randint(1, 70), random.randint(1, 9)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_word_has_eight_and_a_byte_two_the_first_lowest(seed: int) -> None:
    lead, rows, count = sizes(seed)
    values = drawn(lead, rows, 8 * count)
    packed = int4.pack_words(values)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [
        [[word_of(line[at : at + 8]) for at in range(0, len(line), 8)] for line in matrix] for matrix in values.tolist()
    ]
    low, high = values.numpy()[..., ::2].astype(np.int64), values.numpy()[..., 1::2].astype(np.int64)
    assert np.array_equal(int4.pack_bytes(values).numpy(), (low % 16 + high % 16 * 16).astype(np.uint8))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_packed_comes_back(seed: int) -> None:
    values = drawn(*sizes(seed)[:2], 8 * sizes(seed)[2])
    assert torch.equal(int4.unpack_words(int4.pack_words(values)), values)
    assert torch.equal(int4.unpack_bytes(int4.pack_bytes(values)), values)
    assert torch.equal(int4.bytes_of(int4.words(int4.pack_bytes(values))), int4.pack_bytes(values))


def test_every_pair_of_int4_has_a_byte_of_its_own() -> None:
    pairs = torch.tensor(list(itertools.product(range(-8, 8), repeat=2)), dtype=torch.int8)
    packed = int4.pack_bytes(pairs)
    assert sorted(packed.flatten().tolist()) == list(range(256))
    assert torch.equal(int4.unpack_bytes(packed), pairs)


@pytest.mark.parametrize("experts", [(), (3,)], ids=["linear", "experts"])
def test_both_versions_of_a_held_weight_are_read_alike(experts: tuple[int, ...]) -> None:
    inputs, outputs = 24, 16
    values = drawn(*experts, outputs, inputs)
    two_to_a_byte = int4.pack_bytes(values.mT).mT.contiguous().view(torch.int8)
    assert two_to_a_byte.shape[-2:] == (outputs // 2, inputs)
    old, new = (int4.as_read(held, inputs, outputs) for held in (values, two_to_a_byte))
    assert torch.equal(old, new)
    assert torch.equal(int4.unpack_bytes(new), values.mT)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (
            torch.zeros(16, 23, dtype=torch.int8),
            r"layer 3: expected weight \[16, 24\], or \[8, 24\] .*found \[16, 2",
        ),
        (torch.zeros(16, 24, dtype=torch.int32), "found .* of int32"),
        (torch.full((16, 24), 8, dtype=torch.int8), "layer 3: expected int4, -8 to 7, found 8 to 8"),
        (torch.full((16, 24), -9, dtype=torch.int8), "found -9 to -9"),
    ],
)
def test_what_is_no_int4_weight_is_refused(weight: Tensor, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        int4.as_read(weight, 24, 16, "layer 3")


def test_what_does_not_fill_bytes_or_words_is_refused() -> None:
    with pytest.raises(QuantizationError, match="an even number of int4, found 5 by 2"):
        int4.pack_bytes(drawn(3, 5))
    with pytest.raises(QuantizationError, match="a multiple of 8 int4 along the last axis, found 12 by 8"):
        int4.pack_words(drawn(3, 12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_each_element_of_nz_lies_where_the_formula_says(seed: int, dtype: torch.dtype) -> None:
    random.seed(seed)
    rows, columns = random.randint(1, 70), random.randint(1, 90)
    matrix = torch.randint(1, 120, (2, rows, columns)).to(dtype)
    fractals = nz.to_nz(matrix)
    width = 32 // matrix.element_size()
    assert fractals.shape == (2, -(-columns // width), -(-rows // 16), 16, width)
    at_row, at_column = np.indices((rows, columns))
    found = fractals[:, at_column // width, at_row // 16, at_row % 16, at_column % width]
    assert torch.equal(found, matrix)
    assert fractals.count_nonzero() == matrix.count_nonzero()  # the rest is filled up with zeros
    assert torch.equal(nz.from_nz(fractals, rows, columns), matrix)


def test_int4_lies_alike_whether_it_is_packed_before_or_after() -> None:
    values = drawn(40, 192)
    of_bytes = nz.to_nz(int4.pack_bytes(values))
    of_words = nz.to_nz(int4.pack_words(values))
    assert torch.equal(int4.words(of_bytes), of_words)
    # 32 bytes are 64 int4: fractals of the values themselves, packed along their rows
    padded = torch.zeros(48, 192, dtype=torch.int8)
    padded[:40] = values
    blocks = padded.view(3, 16, 3, 64).permute(2, 0, 1, 3)
    assert torch.equal(int4.pack_bytes(blocks), of_bytes)


def test_what_is_no_matrix_or_no_such_matrix_in_nz_is_refused() -> None:
    with pytest.raises(QuantizationError, match="expected a matrix"):
        nz.to_nz(torch.zeros(7))
    with pytest.raises(QuantizationError, match=r"expected fractals \[2, 3, 16, 32\], found \[1, 3, 16, 32\]"):
        nz.from_nz(nz.to_nz(torch.ones(48, 32, dtype=torch.int8)), 48, 33)
