"""The checksum of a tensor against its definition, and what it must notice."""

import numpy as np
import pytest
import torch

from actors.weights import checksum as module
from actors.weights.checksum import checksum

SIZES = (10, 5000, 70_000)
"""Words: a part of a row, of two rows, more than are summed by numpy."""


def words(size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63, size=size))


def defined(numbers: list[int]) -> int:
    """The docstring, a word at a time."""
    places = ((2 * (at // 4096) + 1) * (at % 4096 + 1) for at in range(len(numbers)))
    return (len(numbers) + sum(place * number for place, number in zip(places, numbers, strict=True))) % 2**64


def swapped(tensor: torch.Tensor, one: slice, other: slice) -> torch.Tensor:
    found = tensor.clone()
    found[one], found[other] = tensor[other], tensor[one]
    return found


@pytest.mark.parametrize("size", [1, *SIZES, 4095, 4096, 4097, 2**16, 2**16 + 1, 65 * 4096, 130 * 4096 + 3])
def test_it_is_its_definition(size: int) -> None:
    """At the borders of rows, of the pieces of 64 rows, and of the two ways to sum."""
    tensor = words(size)
    assert checksum(tensor) == defined(tensor.tolist())


@pytest.mark.parametrize("size", SIZES)
def test_what_changes_it(size: int) -> None:
    tensor, last = words(size), words(size)
    last[-1] += 1
    zeros = [torch.zeros(size + more, dtype=torch.int64) for more in (0, 1)]
    others = [
        last,
        words(size, 1),
        swapped(tensor, slice(2, 3), slice(3, 4)),
        swapped(tensor, slice(0, 1), slice(9, 10)),
    ]
    if size > 4096:  # the places of these are the same in their rows
        others.append(swapped(tensor, slice(0, 1), slice(4096, 4097)))
    if size > 8192:
        others.append(swapped(tensor, slice(0, 4096), slice(4096, 8192)))
        others.append(swapped(tensor, slice(4096, 8192), slice(8 * 4096, 9 * 4096)))
    found = [checksum(each) for each in (tensor, *others, *zeros)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_same_however_it_is_summed(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = words(size)
    assert module._row_sums_small(tensor) == module._row_sums(tensor)
    found = set()
    for small in (0, 2**20):
        monkeypatch.setattr(module, "_SMALL", small)
        found.add(checksum(tensor))
    assert found == {defined(tensor.tolist())}


@pytest.mark.parametrize(
    ("dtype", "size", "width"),
    [
        (torch.float32, 10, 8), (torch.float32, 11, 4), (torch.bfloat16, 12, 8), (torch.bfloat16, 10, 4),
        (torch.bfloat16, 9, 2), (torch.uint8, 24, 8), (torch.uint8, 7, 1), (torch.float64, 3, 8),
    ],
)  # fmt: skip
def test_any_type_is_read_as_the_widest_integers_that_divide_it(dtype: torch.dtype, size: int, width: int) -> None:
    tensor = (torch.arange(size) * 7 - 20).to(dtype)
    raw = tensor.view(torch.uint8).numpy().tobytes()
    kind = {8: np.int64, 4: np.int32, 2: np.int16, 1: np.uint8}[width]
    assert checksum(tensor) == defined(np.frombuffer(raw, kind).tolist())


def test_only_the_bytes_count() -> None:
    """Not the shape, nor how it lies in memory, nor that it needs a gradient; a sign of zero does."""
    tensor = torch.arange(6000, dtype=torch.float32).reshape(60, 100)
    expected = checksum(tensor)
    assert checksum(tensor.flatten()) == checksum(tensor.clone().requires_grad_()) == expected
    turned = tensor.t()
    assert checksum(turned) == checksum(turned.contiguous()) != expected
    assert checksum(turned.t()) == expected
    assert checksum(torch.zeros(8)) != checksum(-torch.zeros(8))
