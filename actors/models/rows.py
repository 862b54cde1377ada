"""Sequences in rows of their own, right-padded to others of similar length, for models that cannot read them packed.

    sequences end to end [I]  ->  calls of [B, L] rows  ->  hidden states of all calls, end to end [N]

Padding comes after a row's tokens: nothing that reads only what came before sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PADDING = 1.125
"""How much longer than its shortest row a call may be, beside a few tokens."""
_FEW = 8


def similar(lengths: Sequence[int]) -> list[list[int]]:
    """Groups of sequences, by their numbers, whose rows are computed in one call: of similar lengths."""
    groups: list[list[int]] = []
    shortest = 0
    # Stable: the groups, and with them how sums are rounded, are the same in every run.
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[number]
        fits = groups and length <= PADDING * shortest + _FEW
        if not fits:
            groups.append([])
            shortest = length
        groups[-1].append(number)
    return groups


def padded_share(lengths: Sequence[int]) -> float:
    """Share of the positions of `similar` rows that are padding."""
    positions = sum(len(group) * max(lengths[number] for number in group) for group in similar(lengths))
    return 1 - sum(lengths) / positions


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Where the tokens of a micro-batch lie in the rows of its calls."""

    calls: list[NDArray[np.int64]]
    """Of each call, the token at each place of its rows, [B, L]; -1 at padding."""
    slots: NDArray[np.int64]
    """Of each token, its place in the rows of all calls, end to end, [I]."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "PaddedRows":
        """Rows of sequences of these lengths, which lie end to end."""
        starts = np.cumsum(lengths) - lengths
        slots = np.empty(sum(lengths), dtype=np.int64)
        calls, before = [], 0
        for group in similar(lengths):
            longest = max(lengths[number] for number in group)
            places = np.arange(longest)
            rows = np.stack([np.where(places < lengths[n], places + starts[n], -1) for n in group])
            filled = rows >= 0
            slots[rows[filled]] = before + np.flatnonzero(filled)
            calls.append(rows)
            before += rows.size
        return cls(calls, slots)

    def tokens(self, token_ids: torch.Tensor) -> list[torch.Tensor]:
        """The rows of each call, int64 [B, L], of the tokens [I]; any token at padding."""
        return [token_ids[torch.from_numpy(np.maximum(rows, 0)).to(token_ids.device)] for rows in self.calls]

    def masks(self, device: torch.device) -> list[torch.Tensor]:
        """Of each call, where tokens are, bool [B, L]; the others are padding."""
        return [torch.from_numpy(rows >= 0).to(device) for rows in self.calls]

    def lengths(self, token_lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Of each call, at each place of its rows, the length of the sequence that the token is in, [B, L]."""
        found = []
        for rows in self.calls:
            own = token_lengths[np.maximum(rows, 0)]
            # Padding is as far behind as the longest row.
            found.append(np.where(rows >= 0, own, own[rows >= 0].max()))
        return found
