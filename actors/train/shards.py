"""Where the elements of each trained parameter lie in what the ranks of a group hold, at every ZeRO stage.

A rank holds flat tensors, of weights as of moments and averages:
    0: each parameter whole, on every rank alike
    1, 2: one for each group of the optimizer; laid end to end, those of all ranks are its parameters, and padding
    3: one or more for each group; each parameter is divided by all ranks, and padded; a rank's shares follow each other
No torch: what a checkpoint was divided by is told, too, where nothing is loaded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise


@dataclass(frozen=True, slots=True)
class Shards:
    """What the state of a group is divided by."""

    ranks: int
    zero_stage: int

    def same_files(self, other: "Shards") -> bool:
        """Whether each rank of the one finds its state in the files of the other: without ZeRO there is only one."""
        return self == other or self.zero_stage == other.zero_stage == 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a parameter that follow each other on a rank.

    Example: Piece(rank=1, flat=0, offset=0, start=24, count=6) of 30 elements: the last 6, where rank 1's begin.
    """

    rank: int
    flat: int
    """Which of the rank's flat tensors."""
    offset: int
    """Of the first element in it."""
    start: int
    """Of the first element in the parameter."""
    count: int


def pieces(shards: Shards, sizes: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[Piece]]:
    """Of each parameter, in the order of the optimizer, where all of its elements are.

    Args:
        shards: what they are divided by.
        sizes: elements of rank 0's flat tensors: where another rank has fewer, these would be padding.
        groups: elements of each parameter of each group of the optimizer.

    Raises:
        ValueError: the flat tensors have no room for the parameters.
    """
    found: list[list[Piece]] = []
    if shards.zero_stage == 0:
        found = [[Piece(0, place, 0, 0, count)] for place, count in enumerate(chain(*groups))]
    elif len(sizes) == len(groups) or (shards.zero_stage == 3 and len(sizes) > len(groups)):
        find = _laid_end_to_end if shards.zero_stage < 3 else _each_divided
        found = find(shards.ranks, sizes, groups)
    whole = [sum(part.count for part in parts) for parts in found] == list(chain(*groups))
    ends = [(part.flat, part.offset + part.count) for parts in found for part in parts]
    if not whole or any(flat >= len(sizes) or end > sizes[flat] for flat, end in ends):
        raise ValueError(f"{shards.ranks} x {list(sizes)} elements have no room for parameters of {list(groups)}")
    return found


def _laid_end_to_end(ranks: int, sizes: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[Piece]]:
    found: list[list[Piece]] = []
    for flat, (size, group) in enumerate(zip(sizes, groups, strict=True)):
        for begin, end in pairwise(accumulate(group, initial=0)):
            first, last = (begin // size, (end - 1) // size) if end > begin else (0, -1)
            found.append([])
            for rank in range(first, min(last + 1, ranks)):
                low, high = max(begin, rank * size), min(end, (rank + 1) * size)
                found[-1].append(Piece(rank, flat, low - rank * size, low - begin, high - low))
    return found


def _each_divided(ranks: int, sizes: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[Piece]]:
    found: list[list[Piece]] = []
    flat = offset = 0
    for elements in chain(*groups):
        share = math.ceil(elements / ranks)
        if flat < len(sizes) and offset + share > sizes[flat]:  # which ends where a parameter does
            flat, offset = flat + 1, 0
        found.append(
            [
                Piece(rank, flat, offset, rank * share, min(share, elements - rank * share))
                for rank in range(ranks)
                if rank * share < elements
            ]
        )
        offset += share
    return found
