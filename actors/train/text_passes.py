"""Into which forward passes texts of different lengths are cut, each of them padded to its longest."""

import numpy as np


def cut_lengths(lengths: list[int], budget: int, overhead: int) -> list[range]:
    """Ranges of texts for one forward pass each: of all ways to cut them, one that costs least.

    Args:
        lengths: of the texts, longest first.
        budget: padded tokens of a pass, at most; a single longer text goes alone.
        overhead: tokens that cost as much as a further pass.

    Example: cut_lengths([9, 8, 2, 2], budget=100, overhead=5) gives [range(0, 2), range(2, 4)].
    """
    sizes = np.array(lengths, dtype=np.int64)
    least = np.zeros(len(lengths) + 1, dtype=np.int64)
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        # Each of them is padded to the first, which is the longest.
        padded = sizes[:end] * np.arange(end, 0, -1)
        allowed = padded <= budget
        allowed[end - 1] = True
        costs = np.where(allowed, least[:end] + padded + overhead, np.iinfo(np.int64).max)
        starts[end] = costs.argmin()
        least[end] = costs[starts[end]]
    ranges, end = [], len(lengths)
    while end:
        ranges.append(range(int(starts[end]), end))
        end = int(starts[end])
    return ranges[::-1]
