"""Which sequences are read together, in rows that are padded to the longest of them. No torch."""

from collections.abc import Sequence

PADDING = 1.125
"""How much longer than its shortest row a call may be, beside a few tokens."""
_FEW = 8


def similar(lengths: Sequence[int], regimes: Sequence[int | None] | None = None) -> list[list[int]]:
    """Groups of sequences, by their numbers, whose rows are computed in one call: of similar lengths, and of one regime
    each, which None is, too."""
    regimes = regimes or [None] * len(lengths)
    groups: list[list[int]] = []
    shortest = regime = None
    # Stable: the groups, and with them how sums are rounded, are the same in every run.
    for number in sorted(range(len(lengths)), key=lambda number: (regimes[number] or 0, lengths[number])):
        length = lengths[number]
        if shortest is None or regimes[number] != regime or length > PADDING * shortest + _FEW:
            groups.append([])
            shortest, regime = length, regimes[number]
        groups[-1].append(number)
    return groups


def padded_share(lengths: Sequence[int]) -> float:
    """Share of the positions of `similar` rows that are padding."""
    positions = sum(len(group) * max(lengths[number] for number in group) for group in similar(lengths))
    return 1 - sum(lengths) / positions
