"""Which sequences are read together, in rows that are padded to the longest of them. No torch."""

from collections.abc import Callable, Hashable, Sequence

PADDING = 1.125
"""How much longer than its shortest row a call may be, beside a few tokens."""
_FEW = 8


def similar(lengths: Sequence[int], regime: Callable[[int], Hashable] = lambda length: None) -> list[list[int]]:
    """Groups of sequences, by their numbers, whose rows are computed in one call: of similar lengths, and of one regime
    each."""
    groups: list[list[int]] = []
    shortest = 0
    # Stable: the groups, and with them how sums are rounded, are the same in every run.
    for number in sorted(range(len(lengths)), key=lambda number: (str(regime(lengths[number])), lengths[number])):
        length = lengths[number]
        fits = groups and regime(length) == regime(shortest) and length <= PADDING * shortest + _FEW
        if not fits:
            groups.append([])
            shortest = length
        groups[-1].append(number)
    return groups


def padded_share(lengths: Sequence[int]) -> float:
    """Share of the positions of `similar` rows that are padding."""
    positions = sum(len(group) * max(lengths[number] for number in group) for group in similar(lengths))
    return 1 - sum(lengths) / positions
