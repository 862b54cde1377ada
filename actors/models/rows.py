"""Sequences in rows of their own, right-padded to others of similar length, for models that cannot read them packed.

    sequences end to end [I]  ->  calls of [B, L] rows  ->  hidden states of all calls, end to end [N]

Padding comes after a row's tokens: nothing that reads only what came before sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from actors.models.similar import similar


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Where the tokens of a micro-batch lie in the rows of its calls."""

    calls: list[NDArray[np.int64]]
    """Of each call, the token at each place of its rows, [B, L]; -1 at padding."""
    regimes: list[int | None]
    """Of each call; see `actors.models.rope.RopeRule`."""
    slots: NDArray[np.int64]
    """Of each token, its place in the rows of all calls, end to end, [I]."""

    @classmethod
    def of(cls, lengths: Sequence[int], regimes: Sequence[int | None], least: int = 1) -> "PaddedRows":
        """Rows, of at least so many places, of sequences of these lengths, which lie end to end; those of a call are of
        one regime."""
        starts = np.cumsum(lengths) - lengths
        slots = np.empty(sum(lengths), dtype=np.int64)
        calls, found, before = [], [], 0
        for group in similar([max(least, length) for length in lengths], regimes):
            longest = max(least, *(lengths[number] for number in group))
            places = np.arange(longest)
            rows = np.stack([np.where(places < lengths[n], places + starts[n], -1) for n in group])
            filled = rows >= 0
            slots[rows[filled]] = before + np.flatnonzero(filled)
            calls.append(rows)
            found.append(regimes[group[0]])
            before += rows.size
        return cls(calls, found, slots)

    def tokens(self, token_ids: torch.Tensor) -> list[torch.Tensor]:
        """The rows of each call, int64 [B, L], of the tokens [I]; any token at padding."""
        return [token_ids[torch.from_numpy(np.maximum(rows, 0)).to(token_ids.device)] for rows in self.calls]

    def masks(self, device: torch.device) -> list[torch.Tensor]:
        """Of each call, where tokens are, bool [B, L]; the others are padding."""
        return [torch.from_numpy(rows >= 0).to(device) for rows in self.calls]
